"""once_per_batch: results of a frozen backbone that are computed once and shared by all methods.

A sweep that runs methods side by side sets the context variable `work` around each call of a
method. Nothing is shared if it is not set: in a user's own loop, or in threads that a method
starts. A network that a method copied for itself shares nothing either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn

from tta_apm.backbones.passes import passes

F = TypeVar("F", bound=Callable[..., Any])


class Work(Protocol):
    """The cached results for the current batch."""

    def answer(self, backbone: nn.Module, question: str, images: Tensor, arguments: Any,
               compute: Callable[[], Any]) -> Any:
        """The result of `compute`, or its cached result.

        Args:
            question: qualified name of the backbone's method that is called.
            images: the first argument of the call.
            arguments: the other arguments.
        """


work: ContextVar[Work | None] = ContextVar("work", default=None)


def once_per_batch(question: F) -> F:
    """Decorator for a backbone's method whose first argument are images.

    Its result must depend on its arguments and the weights only.
    """
    def answer(self: nn.Module, images: Tensor, *arguments: Any, **keywords: Any) -> Any:
        known = work.get()
        if known is None:
            return question(self, images, *arguments, **keywords)
        return known.answer(self, question.__qualname__, images, (arguments, keywords),
                            lambda: question(self, images, *arguments, **keywords))

    @functools.wraps(question)
    def ask(self: nn.Module, images: Tensor, *arguments: Any, **keywords: Any) -> Any:
        counted = passes.get()
        if counted is None:
            return answer(self, images, *arguments, **keywords)
        before = counted.open
        found = answer(self, images, *arguments, **keywords)
        if not _requires_grad(found):  # e.g. of a frozen network: no backward pass can follow
            counted.open = before
        return found
    return cast(F, ask)


def _requires_grad(answer: Any) -> bool:
    parts = answer if isinstance(answer, tuple) else (answer,)
    return any(isinstance(part, Tensor) and part.requires_grad for part in parts)
