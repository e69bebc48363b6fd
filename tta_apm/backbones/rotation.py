"""Rotation: a classifier with a second branch that predicts an image's rotation, for TTT."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from tta_apm.backbones.backbone import UNTRAINED, Backbone, check_model
from tta_apm.backbones.build import Task
from tta_apm.backbones.weights.classes import load_classes
from tta_apm.backbones.weights.files import require_weights
from tta_apm.backbones.weights.trees import Entry

NUM_ROTATIONS = 4


class Joint(nn.Module):
    """A Y-shaped network: a trunk that two branches share.

    Args:
        trunk: normalised images [B,3,H,W] -> feature maps.
        classifier: the classification branch, feature maps -> logits [B,K]; its last layer is
            named fc. The rotation branch is a copy of it with another last layer.
    """

    def __init__(self, trunk: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        self.classifier = classifier
        self.rotation = copy.deepcopy(classifier)
        last = classifier.get_submodule("fc")
        assert isinstance(last, nn.Linear)
        self.rotation.fc = nn.Linear(last.in_features, NUM_ROTATIONS)

    def forward(self, images: Tensor, branch: str = "classifier") -> Tensor:
        """Logits [B,K] of branch "classifier", or [B,4] of branch "rotation"."""
        return self.get_submodule(branch)(self.trunk(images))


class Model(NamedTuple):
    """A network and the images that it takes."""

    make: Callable[[int], Joint]  # number of classes K -> network
    image_size: int = 32  # pixels
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    # Whether it was trained on random resized crops, as for ImageNet; else on random crops of the
    # padded image, as for CIFAR.
    resized_crops: bool = False


class Rotation(Backbone):
    """A frozen classifier that was trained jointly with a rotation branch.

    Args:
        net: the Y-shaped network.
        model: its entry in MODELS, for the images that it takes.
        name, weights, keep: see Backbone.
    """

    kind = "rotation"
    image_size: int

    def __init__(self, net: Joint, model: Model, *, name: str, weights: str,
                 keep: Sequence[int] | None = None) -> None:
        super().__init__(image_size=model.image_size, mean=model.mean, std=model.std, name=name,
                         weights=weights, keep=keep)
        self.net = net
        self.resized_crops = model.resized_crops
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.select_classes(self.net(self.prepare(images)))


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate square images [N,3,S,S] by `turns` [N] quarter turns counter-clockwise each."""
    rotated = images.clone()
    for quarter in range(1, NUM_ROTATIONS):
        chosen = (turns == quarter).nonzero().squeeze(-1)
        rotated[chosen] = images[chosen].rot90(quarter, (-2, -1))
    return rotated


def all_rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """All rotations [4N,3,S,S] of square images [N,3,S,S], and their quarter turns [4N]."""
    turns = torch.arange(NUM_ROTATIONS, device=images.device).repeat_interleave(len(images))
    return rotate(images.repeat(NUM_ROTATIONS, 1, 1, 1), turns), turns


class Block(nn.Module):
    """A pre-activation residual block of two 3x3 convolutions (He et al., ECCV 2016).

    If the shape changes, the shortcut averages pixels and pads with zero channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.bn1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.relu(self.bn1(x)))
        residual = self.conv2(self.relu(self.bn2(residual)))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) + residual


def cifar_resnet(num_classes: int, *, depth: int = 26, widths: Sequence[int] = (16, 32, 64),
                 groups: int = 8, stem_stride: int = 1) -> Joint:
    """A pre-activation ResNet with GroupNorm for small images, split before its last stage.

    The defaults give ResNet-26 of TTT's CIFAR-10 experiments (with GroupNorm instead of batch
    normalisation). Layers have the names of the authors' code.

    Args:
        num_classes: K.
        depth: 6n + 2 for n blocks in each of the three stages.
        widths: channels of the stages.
        groups: groups of GroupNorm.
        stem_stride: stride of the first convolution.
    """
    num_blocks = (depth - 2) // 6

    def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        shapes = [(in_channels, stride)] + [(out_channels, 1)] * (num_blocks - 1)
        return nn.Sequential(*[Block(channels, out_channels, stride=step, groups=groups)
                               for channels, step in shapes])

    first, second, third = widths
    trunk = nn.Sequential(OrderedDict(
        conv1=_conv3x3(3, first, stem_stride), layer1=stage(first, first, 1),
        layer2=stage(first, second, 2)))
    classifier = nn.Sequential(OrderedDict(
        layer3=stage(second, third, 2), bn=nn.GroupNorm(groups, third), relu=nn.ReLU(inplace=True),
        avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(third, num_classes)))
    return Joint(trunk, classifier)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def imagenet_resnet18(num_classes: int) -> Joint:
    """ResNet-18 with GroupNorm of 32 groups, split before its last stage, as in TTT."""
    net = resnet18(num_classes=num_classes, norm_layer=partial(nn.GroupNorm, 32))
    trunk = nn.Sequential(OrderedDict(
        (name, net.get_submodule(name))
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")))
    classifier = nn.Sequential(OrderedDict(
        layer4=net.layer4, avgpool=net.avgpool, flatten=nn.Flatten(), fc=net.fc))
    return Joint(trunk, classifier)


MODELS = {
    "resnet26_gn": Model(cifar_resnet),
    "resnet18_gn": Model(imagenet_resnet18, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                         resized_crops=True),
    "digits_rotation": Model(partial(cifar_resnet, depth=8, widths=(8, 16, 32), groups=4,
                                     stem_stride=2)),
    "cifar_rotation": Model(partial(cifar_resnet, depth=8, widths=(24, 48, 96), stem_stride=2)),
}


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> Rotation:
    """See Kind."""
    return load_rotation(section["MODEL"], section["WEIGHTS"], num_classes=task.num_outputs,
                         device=device, keep=task.keep)


def untrained(model: str, task: Task, device: torch.device | str) -> Rotation:
    """See Kind."""
    check_model("ROTATION", model, MODELS)
    return Rotation(MODELS[model].make(task.num_outputs), MODELS[model], name=model,
                    weights=UNTRAINED).to(device)


def load_rotation(model: str, weights: str, *, num_classes: int, device: torch.device | str,
                  keep: Sequence[int] | None = None) -> Rotation:
    """Load a jointly trained classifier.

    Args:
        model: a name of MODELS.
        weights: a file, or the name of a packaged file, with the weights of Joint or in the format
            of the authors' code.
        num_classes: number of classes of the network.
        keep: see Backbone.

    Raises:
        UserError: for an unknown model, or for weights that are not found or do not fit.
    """
    check_model("ROTATION", model, MODELS)
    file = require_weights("ROTATION", weights)
    _join_parts(file.state_dicts, MODELS[model].make(num_classes))
    loaded = load_classes(MODELS[model].make, file, model, num_classes=num_classes, keep=keep)
    assert isinstance(loaded.net, Joint)
    return Rotation(loaded.net, MODELS[model], name=model, weights=loaded.label,
                    keep=loaded.keep).to(device)


def _join_parts(state_dicts: dict[str, dict[str, Entry]], net: Joint) -> None:
    """Join the two state dicts of the authors' code, "net" and "head", in place.

    The joined one has the names of the network `net`. The authors' head is a list of layers in the
    order of the rotation branch.
    """
    for path in [path for path in state_dicts if path.rpartition("/")[2] == "net"]:
        head = path.removesuffix("net") + "head"
        if head not in state_dicts:
            continue
        layers = {str(index): name for index, (name, _) in enumerate(net.rotation.named_children())}
        joined = {}
        for name, entry in state_dicts.pop(path).items():
            name = name.removeprefix("module.")  # of DataParallel
            part = "trunk" if hasattr(net.trunk, name.split(".")[0]) else "classifier"
            joined[f"{part}.{name}"] = entry
        for name, entry in state_dicts.pop(head).items():
            index, _, rest = name.removeprefix("module.").partition(".")
            joined[f"rotation.{layers.get(index, index)}.{rest}"] = entry
        state_dicts[f"{path} and {head}"] = joined
