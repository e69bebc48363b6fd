"""Joint Train: a network trained jointly to reconstruct masked patches and to classify."""

from __future__ import annotations

from tta_apm.backbones.mae_joint import JointMae
from tta_apm.toolbox.unadapted import Unadapted


class JointTrain(Unadapted):
    """Encoder, decoder and head of a masked autoencoder, trained together on both tasks and not
    adapted: the row Joint Train of TTT-MAE's tables (Gandelsman et al., NeurIPS 2022)."""

    needs = "mae_joint"
    scope = "image"

    def __init__(self, backbone: JointMae) -> None:
        super().__init__()
        self.backbone = backbone
