"""once_per_batch: what several methods ask of one frozen backbone, worked out once for all.

Whoever runs methods side by side sets `work` around each call of a method. Nothing is shared where
it is not set: in a loop of one's own, in threads that a method starts, in a network that a method
copied for itself.
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
    """The answers that are known for the batch under way."""

    def answer(self, backbone: nn.Module, question: str, images: Tensor, arguments: Any,
               compute: Callable[[], Any]) -> Any:
        """What `compute` gives, or what it gave to a method that asked the same before."""


work: ContextVar[Work | None] = ContextVar("work", default=None)


def once_per_batch(question: F) -> F:
    """Decorator for a backbone's method of images whose answer depends on nothing but these, its
    other arguments and the weights."""
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
        if not _takes_gradients(found):  # a frozen network's, say, handed on or worked out
            counted.open = before
        return found
    return cast(F, ask)


def _takes_gradients(answer: Any) -> bool:
    parts = answer if isinstance(answer, tuple) else (answer,)
    return any(isinstance(part, Tensor) and part.requires_grad for part in parts)
