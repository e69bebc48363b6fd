"""once_per_batch: results of a frozen backbone that are computed once and shared by all methods.

A sweep that runs methods side by side sets the context variable `batch_cache` around each call of a
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


class BatchCache(Protocol):
    """The results of backbones that are cached for the current batch."""

    def get_or_compute(self, backbone: nn.Module, name: str, images: Tensor, arguments: Any,
                       compute: Callable[[], Any]) -> Any:
        """The result of `compute`, or its cached result.

        Args:
            name: qualified name of the backbone's method that is called.
            images: the first argument of the call.
            arguments: the other arguments.
        """


batch_cache: ContextVar[BatchCache | None] = ContextVar("batch_cache", default=None)


def once_per_batch(method: F) -> F:
    """Decorator for a backbone's method whose first argument are images.

    Its result must depend on its arguments and the weights only.
    """
    def cached(self: nn.Module, images: Tensor, *arguments: Any, **keywords: Any) -> Any:
        cache = batch_cache.get()
        if cache is None:
            return method(self, images, *arguments, **keywords)
        return cache.get_or_compute(self, method.__qualname__, images, (arguments, keywords),
                                    lambda: method(self, images, *arguments, **keywords))

    @functools.wraps(method)
    def counted(self: nn.Module, images: Tensor, *arguments: Any, **keywords: Any) -> Any:
        counts = passes.get()
        if counts is None:
            return cached(self, images, *arguments, **keywords)
        before = counts.open
        result = cached(self, images, *arguments, **keywords)
        if not _requires_grad(result):  # e.g. of a frozen network: no backward pass can follow
            counts.open = before
        return result
    return cast(F, counted)


def _requires_grad(result: Any) -> bool:
    parts = result if isinstance(result, tuple) else (result,)
    return any(isinstance(part, Tensor) and part.requires_grad for part in parts)
