"""Fine-Tune: a masked autoencoder's encoder, fine-tuned to classify and not adapted."""

from __future__ import annotations

from torch import Tensor

from tta_apm.backbones.mae_fine_tuned import FineTunedMae
from tta_apm.method import Method


class FineTune(Method):
    """The encoder of a masked autoencoder with a linear head, both trained on labelled source
    images and not adapted (He et al., CVPR 2022): the row Fine-Tune of TTT-MAE's tables."""

    needs = "mae_fine_tuned"
    scope = "image"

    def __init__(self, backbone: FineTunedMae) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def reset(self) -> None:
        """Do nothing: there is no state."""
