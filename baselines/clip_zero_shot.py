"""CLIP zero-shot: the un-adapted CLIP, also the row of APM's teacher."""

from __future__ import annotations

from tta_apm.backbones.clip import ClipBackbone
from tta_apm.toolbox.unadapted import Unadapted


class ClipZeroShot(Unadapted):
    """Zero-shot classification by logit_scale · cos(image, text) (Radford et al., ICML 2021).

    The config key TEMPLATES chooses one template or the data set's ensemble of templates. For an
    ensemble, the feature of each prompt is normalised, and their mean is normalised again.
    """

    needs = "clip"
    scope = "image"

    def __init__(self, backbone: ClipBackbone) -> None:
        super().__init__()
        self.backbone = backbone
