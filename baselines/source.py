"""Source: the un-adapted classifier."""

from __future__ import annotations

from tta_apm.backbones.classifiers import Classifier
from tta_apm.toolbox.unadapted import Unadapted


class Source(Unadapted):
    """The un-adapted model, the row with which every adaptation of a classifier is compared."""

    needs = "classifier"
    scope = "image"

    def __init__(self, backbone: Classifier) -> None:
        super().__init__()
        self.backbone = backbone
