"""Method: the interface of every adaptation method, from images to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from tta_apm.registry import METHODS

M = TypeVar("M", bound="type[Method]")


class SourceImages(Protocol):
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

    The constructor of a subclass takes the backbone and keyword-only hyper-parameters, whose
    defaults are those of the method's paper. The keywords are the method's section of a config.
    Two keywords are set by the run if a method has them: `seed: int` and
    `source: SourceImages | None`, labelled images that the backbone was trained on (None if there
    are none).

    `forward` adapts under `torch.enable_grad()`, so that a caller may call it under `no_grad`.

    Class attributes:
        needs: the kind of backbone, a name in `backbones/build.py`, e.g. "classifier". If a row
            says BACKBONE clip, a method that needs a classifier gets the image tower of a CLIP,
            with its text features as the head.
        also_takes: a second kind of backbone, which a row chooses by BACKBONE; "" for none.
        scope: what the result for an image depends on: "image" (that image alone), "batch" (also
            the other images of its batch), "stream" (also all batches before) or "domain" (all
            images of its domain, which `prepare` gets before the first prediction: offline).
        survives: what state is carried from image to image if scope is "stream", e.g. "weights".
            Printed in the table.
        skip_setup: hyper-parameters that switch off one-time setup, e.g. RMT's warm-up, when the
            cost per image is measured.
    """

    needs: ClassVar[str] = "classifier"
    also_takes: ClassVar[str] = ""
    scope: ClassVar[str] = "image"
    survives: ClassVar[str] = ""
    skip_setup: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        #: Per-image results of the last forward beside the logits, [B] each, stored with the
        #: predictions: "teacher_prediction" (classes) and "cosine" (between the features of student
        #: and teacher). Other names are refused.
        self.details: dict[str, Tensor] = {}
        #: The values that the method chose for hyper-parameters set to "auto", for the record.
        self.resolved: dict[str, Any] = {}
        #: Counts of the method's work since it was built, for the record; a reset does not clear
        #: them. "updated": images that an update was made on. "resets": by the method itself.
        #: "forwards", "backwards": images through its networks. A count that a method does not keep
        #: is measured: passes through the backbone and its copies, and all images of a call in
        #: which an optimiser steps.
        self.did: Counter[str] = Counter()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Adapt to images [B,3,H,W] in [0,1] and return their logits [B,K]."""

    def prepare(self, images: DomainImages) -> None:
        """Adapt to all images of a domain, before any of them is predicted.

        Called once after each reset, for methods of scope "domain" only. Until then `forward`
        predicts with the state after the reset; `forward` itself does not adapt.
        """

    @abstractmethod
    def reset(self) -> None:
        """Restore all state (weights, buffers, optimiser, generator) to that of the start."""


def register(name: str) -> Callable[[M], M]:
    """Class decorator: register a Method under `name`, beside those of entry points."""
    return METHODS.register(name)
