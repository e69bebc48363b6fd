"""CLIP zero-shot: the un-adapted CLIP, and the teacher's own row beside APM."""

from __future__ import annotations

from torch import Tensor

from tta_apm.backbones.clip import ClipBackbone
from tta_apm.method import Method


class ClipZeroShot(Method):
    """logit_scale · cos(image, text) (Radford et al. 2021).

    The config key TEMPLATES chooses one template or the data set's ensemble: each prompt's feature
    normalised, averaged over templates, normalised again.
    """

    needs = "clip"
    scope = "image"

    def __init__(self, backbone: ClipBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def reset(self) -> None:
        """Nothing to do: it keeps no state."""
