"""Normalisation layers: chosen by their position in the network, never by their names.

"All but the last stage" means the same for every library, since it is read off the nesting of
modules, whose order is that of their registration: the order in which networks run them.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError

# The part of a network's stages, or of its blocks, that counts as its end: the last of a
# residual network's four stages, the last three of a vision transformer's twelve blocks.
END = 1 / 4
# A child that holds more of the layers than this is the trunk itself, and not a stage of it.
# (The stage with most is ResNet-152's third, with 70 %.)
TRUNK = 3 / 4


class _Part(NamedTuple):
    layers: list[nn.Module]
    is_block: bool  # a stage or a block; else a layer between them, as in a stem


def norm_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of batch, layer, group and instance normalisation that have a scale, in order."""
    return [module for module in model.modules()
            if isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
            and module.weight is not None]


def without_last_stage(model: nn.Module) -> list[nn.Module]:
    """The normalisation layers before the last stage or blocks of a network.

    Where stages follow one another, as in residual and hierarchical networks, the last quarter of
    them is left out; where blocks do, as in vision transformers, the last quarter of the blocks;
    in a network of neither kind, the last quarter of the layers. At least one is left out, and
    with them whatever follows, so a transformer's last normalisation, too.
    """
    parts = _parts(model)
    blocks = [index for index, part in enumerate(parts) if part.is_block]
    if len(blocks) < 2:
        layers = [layer for part in parts for layer in part.layers]
        return layers[:len(layers) - _end(len(layers))]
    last = blocks[len(blocks) - _end(len(blocks)) - 1]
    return [layer for part in parts[:last + 1] for layer in part.layers]


def _end(count: int) -> int:
    return max(1, round(END * count))


def _parts(model: nn.Module) -> list[_Part]:
    """What a network consists of, at the level of its stages or, if it has none, its blocks."""
    inside = [(child, norm_layers(child)) for child in model.children()]
    inside = [(child, layers) for child, layers in inside if layers]
    total = sum(len(layers) for _, layers in inside)
    for index, (child, layers) in enumerate(inside):
        if layers[0] is not child and len(layers) > TRUNK * total:
            def alone(found: list[nn.Module]) -> list[_Part]:
                return [_Part([layer], False) for layer in found]
            before = [layer for _, found in inside[:index] for layer in found]
            after = [layer for _, found in inside[index + 1:] for layer in found]
            return [*alone(before), *_parts(child), *alone(after)]
    return [_Part(layers, len(layers) > 1) for _, layers in inside]


def train_only(model: Classifier, layers: list[nn.Module], method: str,
               where: str = "") -> list[nn.Parameter]:
    """Scales and shifts of `layers`, which alone of a model's parameters now take gradients.

    Args:
        method: whose name an error begins with.
        where: in which part of the network the layers are, for the error.

    Raises:
        UserError: if there are none.
    """
    model.requires_grad_(False)
    found = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    for parameter in found:
        parameter.requires_grad_(True)
    if not found:
        raise UserError(f"{method}: the classifier {model.name} has no normalisation layers{where}")
    return found


class SingleImage(ValueError):
    """A batch of one image where a method needs the statistics of a batch."""


def check_batch(images: Tensor, uses_batch_statistics: bool, method: str,
                advice: str = "use a larger batch") -> None:
    """SingleImage for a single image where layers normalise by the batch's statistics."""
    if uses_batch_statistics and len(images) == 1:
        raise SingleImage(f"{method}: a batch of one image has no batch statistics; {advice}")
