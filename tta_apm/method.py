"""Method: the contract that every adaptation method keeps, images in and logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from tta_apm.registry import METHODS

M = TypeVar("M", bound="type[Method]")


class Source(Protocol):
    """Labelled source images, for methods that are not source-free."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,3,H,W] in [0,1] and labels int64 [n] at positions `indices` [n]."""


class DomainImages(Protocol):
    """All test images of a domain, without labels, in the order of its stream."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Images [n,3,H,W] in [0,1] at positions `indices` [n]."""


class Method(nn.Module, ABC):
    """A test-time adaptation method over a frozen backbone.

    A subclass takes the backbone and keyword-only hyper-parameters whose defaults are its own
    paper's; they are its section of a config. Two keywords are set by the run where a method names
    them: `seed: int`, and `source: Source | None`, the labelled images that the backbone learnt
    from, None where there are none.
    It adapts under `torch.enable_grad()`, so that a caller may hold `no_grad`.

    Class attributes:
        needs: the kind of backbone it takes: "classifier", "clip", "mae" or "rotation". Where a
            row says BACKBONE clip, one that needs a classifier is given a CLIP's image tower as
            one.
        also_takes: another kind of backbone that it takes as well, where a row says BACKBONE and
            its name; "" for none.
        scope: what the result for an image depends on: "image" (that image alone: fresh for
            each), "batch" (also the others in its batch), "stream" (also all batches before) or
            "domain" (all images of its domain, which `prepare` is shown first: offline).
        survives: what state is carried from image to image when scope is "stream", e.g.
            "weights". Printed in the table.
        skip_setup: hyper-parameters that switch off what is done once before all images (RMT's
            warm-up, e.g.), for a measurement of the cost per image.
    """

    needs: ClassVar[str] = "classifier"
    also_takes: ClassVar[str] = ""
    scope: ClassVar[str] = "image"
    survives: ClassVar[str] = ""
    skip_setup: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        #: Per-image side results of the last forward, [B] each, which are stored with the
        #: predictions: "teacher_prediction" (classes), "cosine" (of the student's and the
        #: teacher's feature), or none; no others.
        self.details: dict[str, Tensor] = {}
        #: Hyper-parameters that were left to it ("auto"), as it chose them; for the record.
        self.resolved: dict[str, Any] = {}
        #: What it did in all its calls, for the record: numbers that only grow, also past a reset.
        #: "updated" images of which an update was made, "resets" by itself; "forwards" and
        #: "backwards" of images through its networks. What it does not tell is counted where that
        #: can be seen: passes through the backbone and its copies, all images of a call in which
        #: an optimiser steps.
        self.did: Counter[str] = Counter()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Adapt to images [B,3,H,W] in [0,1] and return their logits [B,K]."""

    def prepare(self, images: DomainImages) -> None:
        """Adapt to all images of a domain before any of them is predicted.

        It is called once after each reset, of methods whose scope is "domain" only. Before it
        `forward` predicts as the method stands after a reset, and no prediction adapts further.
        """

    @abstractmethod
    def reset(self) -> None:
        """Return every piece of state (weights, buffers, optimiser, generator) to the start."""


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a Method known under `name`, beside those of entry points."""
    return METHODS.register(name)
