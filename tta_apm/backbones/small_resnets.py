"""Small ResNets with BatchNorm for images of 32x32 pixels, registered with timm."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

CFG = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (1, 1),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": "conv1.0",
    "classifier": "fc",
}

default_cfgs = generate_default_cfgs({"digits_resnet": CFG, "cifar_resnet": CFG})


@register_model
def digits_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A ResNet of four stages with one block each, whose stem reduces images to 8x8."""
    return _resnet("digits_resnet", pretrained, kwargs)


@register_model
def cifar_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The same network with a stem that keeps 32x32: finer details, and 16 times the operations."""
    net = _resnet("cifar_resnet", pretrained, kwargs)
    net.conv1[0].stride = (1, 1)
    net.maxpool = nn.Identity()
    return net


def _resnet(name: str, pretrained: bool, kwargs: dict[str, Any]) -> ResNet:
    shape = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128),
             "stem_type": "deep", "stem_width": 8}
    return build_model_with_cfg(ResNet, name, pretrained, **{**shape, **kwargs})
