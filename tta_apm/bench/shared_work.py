"""SharedWork: what methods that run side by side ask of a frozen backbone, once for each batch.

Each method is charged as if it were alone: the seconds that its questions took whoever asked them
first, and the memory that they took. An answer is handed on only where it would be the same to the
bit: for the same images and arguments, while the backbone and torch's settings are as they were
when the sweep began, and from a network that draws no random numbers and keeps nothing in mind.
Everyone gets a copy, so that nobody can write to another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tta_apm.backbones.passes import Passes, passes
from tta_apm.backbones.sharing import work
from tta_apm.bench import measure
from tta_apm.bench.backbone_state import QuickState
from tta_apm.bench.process_state import OF_TORCH, torch_settings
from tta_apm.bench.randomness import global_state, same_state


class Turn:
    """What one call of a method is charged beyond what was measured.

    Attributes:
        seconds: of the answers that it was handed, less those of looking them up.
        peak_mb: of the device's memory, while an answer was or would have been worked out.
    """

    def __init__(self) -> None:
        self.seconds = self.peak_mb = 0.0


class Answer(NamedTuple):
    """What a backbone answered, and what that cost.

    Args:
        extra_mb: of memory, beyond what was in use.
        forwards: images that went through the backbone.
    """

    content: Any
    seconds: float
    extra_mb: float
    forwards: int


class SharedWork:
    """The answers for the batch under way.

    Args:
        backbones: frozen ones that several methods use, as they are before the first call.
    """

    def __init__(self, backbones: Sequence[nn.Module], device: torch.device) -> None:
        self.states = {id(backbone): QuickState(backbone) for backbone in backbones}
        self.settings = torch_settings() if backbones else []
        self.device = device
        self.images: Tensor | None = None
        self.answers: dict[Any, Answer] = {}

    def begin(self, images: Tensor) -> None:
        """A batch begins, whose images on the device these are: older answers are forgotten."""
        self.images = images if self.states else None
        self.answers.clear()

    def end(self) -> None:
        """The batch is over."""
        self.images = None
        self.answers.clear()

    @property
    def size_mb(self) -> float:
        """Of the answers that are kept."""
        return sum(_num_bytes(known.content) for known in self.answers.values()) / measure.MB

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """A method's call, inside which its questions are answered from here."""
        self._turn = Turn()
        token = work.set(self if self.images is not None else None)
        try:
            yield self._turn
        finally:
            work.reset(token)

    def answer(self, backbone: nn.Module, question: str, images: Tensor, arguments: Any,
               compute: Callable[[], Any]) -> Any:
        """See backbones.sharing.Work."""
        measure.synchronize(self.device)  # for what the method did before, which is its own
        began = time.perf_counter()
        key = self._key(backbone, question, images, arguments)
        if key is None:
            return compute()
        known = self.answers.get(key)
        if known is None:
            content, seconds = self._compute(key, backbone, compute)
        else:
            content, seconds = _copied(known.content), known.seconds
            self._charge(measure.memory_in_use_mb(self.device) + known.extra_mb)
            if (counted := passes.get()) is not None:
                counted.forwards += known.forwards
        measure.synchronize(self.device)
        self._turn.seconds += seconds - (time.perf_counter() - began)
        return content

    def _key(self, backbone: nn.Module, question: str, images: Tensor, arguments: Any) -> Any:
        """What tells the answer to a question; None for one that is not to be shared."""
        if id(backbone) not in self.states or not self._is_of_batch(images):
            return None
        if not self._is_undisturbed(backbone):
            return None
        memory = (images.storage_offset(), tuple(images.shape), images.stride(), images._version)
        return (id(backbone), question, repr(arguments), memory, torch.is_inference_mode_enabled())

    def _is_of_batch(self, images: Tensor) -> bool:
        """Whether `images` are the batch under way or a part of it."""
        assert self.images is not None
        if type(images) is not Tensor or images.requires_grad or images.dtype != self.images.dtype:
            return False
        try:
            address = images.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # inside vmap, say
            return False
        return address == self.images.untyped_storage().data_ptr()

    def _is_undisturbed(self, backbone: nn.Module) -> bool:
        """Whether backbone and torch's settings are as at the start; grad mode makes no odds."""
        now = torch_settings()
        return (all(before == after for index, (before, after) in enumerate(zip(self.settings, now))
                    if index != GRAD_MODE)
                and self.states[id(backbone)].is_same())

    def _compute(self, key: Any, backbone: nn.Module, compute: Callable[[], Any]
                 ) -> tuple[Any, float]:
        """The answer, worked out and kept, and the seconds that it took."""
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
        if (_can_be_copied(content) and same_state(random, global_state())
                and self._is_undisturbed(backbone)):
            self.answers[key] = Answer(_copied(content), seconds, max(0.0, peak - before),
                                       counted.forwards - forwards)
        return content, seconds

    def _charge(self, peak_mb: float) -> None:
        self._turn.peak_mb = max(self._turn.peak_mb, peak_mb)


# Its index among torch's settings.
GRAD_MODE = [setting.name for setting in OF_TORCH].index("torch's grad mode")


def _can_be_copied(content: Any) -> bool:
    """Whether copies are as good as what was worked out: tensors without a gradient, laid out the
    same, or tuples of these."""
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
