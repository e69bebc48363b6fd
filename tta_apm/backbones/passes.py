"""Passes: how many images go through networks, and gradients back, while a method adapts.

Whoever counts sets `passes` around a method's calls. Nothing is counted where it is not set.
"""

from __future__ import annotations

import math
from contextvars import ContextVar

import torch._C._functorch as functorch
from torch import Tensor, is_grad_enabled


class Passes:
    """Counts images, views of an image one by one.

    Attributes:
        forwards: that went through a backbone or through a copy of one.
        backwards: of those, the ones that a gradient went back for.
        open: those of the call under way that a gradient may yet go back for.
        steps: of optimisers, in the call under way.
    """

    def __init__(self) -> None:
        self.forwards = self.backwards = self.open = self.steps = 0

    def forward(self, images: Tensor) -> None:
        """Images [n,3,H,W] go through a network; n is that of all, inside vmap too."""
        whole = images
        while functorch.is_functorch_wrapped_tensor(whole):
            whole = functorch.get_unwrapped(whole)
        count = whole.numel() // max(1, math.prod(images.shape[1:]))
        self.forwards += count
        self.open += count if is_grad_enabled() else 0

    def gradient(self) -> None:
        """A gradient is taken: it goes back through all that is open."""
        self.backwards += self.open
        self.open = 0


passes: ContextVar[Passes | None] = ContextVar("passes", default=None)
