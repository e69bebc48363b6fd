"""Passes: the number of images in forward and backward passes while a method adapts.

The evaluation sets the context variable `passes` around a method's calls. If it is not set, nothing
is counted.
"""

from __future__ import annotations

import math
from contextvars import ContextVar

import torch._C._functorch as functorch
from torch import Tensor, is_grad_enabled


class Passes:
    """Counters of images; each view of an image counts as one.

    Attributes:
        forwards: images in forward passes of a backbone or of a copy of one.
        backwards: how many of these a backward pass followed.
        open: images of the current call whose backward pass may still follow.
        steps: optimiser steps in the current call.
    """

    def __init__(self) -> None:
        self.forwards = self.backwards = self.open = self.steps = 0

    def forward(self, images: Tensor) -> None:
        """Count the images [n,3,H,W] of a forward pass; inside vmap, those of all its slices."""
        whole = images
        while functorch.is_functorch_wrapped_tensor(whole):
            whole = functorch.get_unwrapped(whole)
        count = whole.numel() // max(1, math.prod(images.shape[1:]))
        self.forwards += count
        self.open += count if is_grad_enabled() else 0

    def gradient(self) -> None:
        """Count a backward pass, which goes through all images that are open."""
        self.backwards += self.open
        self.open = 0


passes: ContextVar[Passes | None] = ContextVar("passes", default=None)
