"""Your own method in one file: CLIP's logits with another temperature.

    tta-apm --cfg cfgs/digits_c/quick.yaml PLUGINS examples/my_method.py \
        METHODS [clip_zero_shot,sharpened] SHARPENED.GAIN 3
"""

from torch import Tensor, nn

from tta_apm import Method, register


@register("sharpened")
class Sharpened(Method):
    """Zero-shot logits times a factor, which changes the confidence but not the predictions.

    Args:
        backbone: a CLIP.
        gain: the factor.
    """

    needs = "clip"    # the kind of frozen backbone: or "classifier", "mae", "rotation"
    scope = "image"   # what a prediction depends on: the image, its batch, or the stream so far

    def __init__(self, backbone: nn.Module, *, gain: float = 2.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.gain * self.backbone(images)

    def reset(self) -> None:
        """Do nothing: there is no state."""
