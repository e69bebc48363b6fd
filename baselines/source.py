"""Source: the un-adapted classifier."""

from __future__ import annotations

from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.method import Method


class Source(Method):
    """The un-adapted model, the row with which every adaptation of a classifier is compared."""

    needs = "classifier"
    scope = "image"

    def __init__(self, backbone: Classifier) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def reset(self) -> None:
        """Do nothing: there is no state."""
