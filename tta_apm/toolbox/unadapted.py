"""Unadapted: a method that only asks its backbone, for the rows that others are compared with."""

from __future__ import annotations

from torch import Tensor

from tta_apm.backbones.backbone import Backbone
from tta_apm.method import Method


class Unadapted(Method):
    """The backbone as it is.

    A subclass has a constructor of its own, which sets `backbone`: signatures are read from a
    class's own text.
    """

    backbone: Backbone

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(images)
        return logits

    def reset(self) -> None:
        """Do nothing: there is no state."""
