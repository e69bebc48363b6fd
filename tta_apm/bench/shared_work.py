"""SharedWork: compute the results of a frozen backbone once per batch for several methods.

The first method that calls the backbone computes the result; others with the same call get a copy
(see backbones.sharing). Each method is charged the time and memory of its calls as if it ran alone.

A result is shared only if every method would compute it bit for bit: for the same images and
arguments, with the backbone and torch's settings unchanged since the sweep began, and from a
network that neither uses random numbers nor changes its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tta_apm.backbones.passes import Passes, passes
from tta_apm.backbones.sharing import batch_cache
from tta_apm.bench import measure
from tta_apm.bench.backbone_state import QuickState
from tta_apm.bench.process_state import OF_TORCH, torch_settings
from tta_apm.bench.randomness import changed_generators, global_state


class Charge:
    """What a call of a method is charged beyond its own measured time and memory.

    Attributes:
        seconds: the time to compute the results that it got, minus the time to look them up.
        peak_mb: the peak device memory while its results were, or would have been, computed.
    """

    def __init__(self) -> None:
        self.seconds = self.peak_mb = 0.0


class Result(NamedTuple):
    """The result of a backbone's call, and its cost.

    Args:
        content: a tensor, None, or a tuple of these.
        seconds: the time to compute it.
        extra_mb: the peak memory of the computation beyond what was in use before.
        forwards: images that went through the backbone.
    """

    content: Any
    seconds: float
    extra_mb: float
    forwards: int


class SharedWork:
    """The cached results for the current batch.

    Args:
        backbones: the frozen backbones that several methods use, in their initial state.
        device: where they are.
    """

    def __init__(self, backbones: Sequence[nn.Module], device: torch.device) -> None:
        self.states = {id(backbone): QuickState(backbone) for backbone in backbones}
        self.settings = torch_settings() if backbones else []
        self.device = device
        self.images: Tensor | None = None
        self.results: dict[Any, Result] = {}

    def begin(self, images: Tensor) -> None:
        """Begin a batch, given its images on the device; older results are dropped."""
        self.images = images if self.states else None
        self.results.clear()

    def end(self) -> None:
        """End the batch."""
        self.images = None
        self.results.clear()

    @property
    def size_mb(self) -> float:
        """The memory of the cached results, in MiB."""
        return sum(_num_bytes(known.content) for known in self.results.values()) / measure.MB

    @contextmanager
    def call(self) -> Iterator[Charge]:
        """A context for a method's call, in which the backbones use the cache."""
        self._charged = Charge()
        token = batch_cache.set(self if self.images is not None else None)
        try:
            yield self._charged
        finally:
            batch_cache.reset(token)

    def get_or_compute(self, backbone: nn.Module, name: str, images: Tensor, arguments: Any,
                       compute: Callable[[], Any]) -> Any:
        """See backbones.sharing.BatchCache."""
        measure.synchronize(self.device)  # do not measure the method's own work before
        began = time.perf_counter()
        key = self._key(backbone, name, images, arguments)
        if key is None:
            return compute()
        known = self.results.get(key)
        if known is None:
            content, seconds = self._compute(key, backbone, compute)
        else:
            content, seconds = _copied(known.content), known.seconds
            self._charge(measure.memory_in_use_mb(self.device) + known.extra_mb)
            if (counted := passes.get()) is not None:
                counted.forwards += known.forwards
        measure.synchronize(self.device)
        self._charged.seconds += seconds - (time.perf_counter() - began)
        return content

    def _key(self, backbone: nn.Module, name: str, images: Tensor, arguments: Any) -> Any:
        """The key of a result; None if it must not be shared."""
        if id(backbone) not in self.states or not self._is_of_batch(images):
            return None
        if not self._is_unchanged(backbone):
            return None
        memory = (images.storage_offset(), tuple(images.shape), images.stride(), images._version)
        return (id(backbone), name, repr(arguments), memory, torch.is_inference_mode_enabled())

    def _is_of_batch(self, images: Tensor) -> bool:
        """Whether `images` are the current batch or a view of a part of it."""
        assert self.images is not None
        if type(images) is not Tensor or images.requires_grad or images.dtype != self.images.dtype:
            return False
        try:
            address = images.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # e.g. inside vmap
            return False
        return address == self.images.untyped_storage().data_ptr()

    def _is_unchanged(self, backbone: nn.Module) -> bool:
        """Whether the backbone and torch's settings, except grad mode, are as at the start."""
        now = torch_settings()
        return (all(before == after for index, (before, after) in enumerate(zip(self.settings, now))
                    if index != GRAD_MODE)
                and self.states[id(backbone)].is_same())

    def _compute(self, key: Any, backbone: nn.Module, compute: Callable[[], Any]
                 ) -> tuple[Any, float]:
        """Compute a result and cache it if it may be shared; returns it and its seconds."""
        random = global_state()
        before = measure.memory_in_use_mb(self.device)
        self._charge(measure.peak_memory_mb(self.device))
        measure.reset_peak_memory(self.device)
        counted = passes.get() or Passes()
        forwards = counted.forwards
        start = time.perf_counter()
        content = compute()
        measure.synchronize(self.device)
        seconds = time.perf_counter() - start
        peak = measure.peak_memory_mb(self.device)
        self._charge(peak)
        if (_can_be_copied(content) and not changed_generators(random, global_state())
                and self._is_unchanged(backbone)):
            self.results[key] = Result(_copied(content), seconds, max(0.0, peak - before),
                                       counted.forwards - forwards)
        return content, seconds

    def _charge(self, peak_mb: float) -> None:
        self._charged.peak_mb = max(self._charged.peak_mb, peak_mb)


# The index of grad mode in `torch_settings()`.
GRAD_MODE = [setting.name for setting in OF_TORCH].index("torch's grad mode")


def _can_be_copied(content: Any) -> bool:
    """Whether a copy is equivalent: for tensors without gradient whose copy has the same strides,
    None, and tuples of these."""
    if isinstance(content, tuple):
        return all(map(_can_be_copied, content))
    return content is None or (type(content) is Tensor and not content.requires_grad
                               and content.clone().stride() == content.stride())


def _copied(content: Any) -> Any:
    if isinstance(content, tuple):
        parts = [_copied(part) for part in content]
        return type(content)(*parts) if hasattr(content, "_fields") else tuple(parts)
    return content if content is None else content.clone()


def _num_bytes(content: Any) -> int:
    if isinstance(content, tuple):
        return sum(map(_num_bytes, content))
    return 0 if content is None else content.nbytes
