"""Fine-Tune: a masked autoencoder's encoder, fine-tuned to classify and not adapted."""

from __future__ import annotations

from tta_apm.backbones.mae_fine_tuned import FineTunedMae
from tta_apm.toolbox.unadapted import Unadapted


class FineTune(Unadapted):
    """The encoder of a masked autoencoder with a linear head, both trained on labelled source
    images and not adapted (He et al., CVPR 2022): the row Fine-Tune of TTT-MAE's tables."""

    needs = "mae_fine_tuned"
    scope = "image"

    def __init__(self, backbone: FineTunedMae) -> None:
        super().__init__()
        self.backbone = backbone
