"""digits_resnet: a small ResNet with BatchNorm, registered with timm like its own models."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

default_cfgs = generate_default_cfgs({
    "digits_resnet": {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (1, 1),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "conv1.0",
        "classifier": "fc",
    },
})


@register_model
def digits_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A ResNet of four stages of one block each, for images of 32x32."""
    shape = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128),
             "stem_type": "deep", "stem_width": 8}
    return build_model_with_cfg(ResNet, "digits_resnet", pretrained, **{**shape, **kwargs})
