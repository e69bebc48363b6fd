"""Normalisation layers: chosen by their position in the network, never by their names.

Positions are read from the nesting and the order of the modules, so "all but the last stage" means
the same for networks of every library. Modules are assumed to run in the order of registration.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError

# The last stages or blocks of a network are this fraction of them: the last of a residual
# network's four stages, the last three of a vision transformer's twelve blocks.
END = 1 / 4
# A child module with more than this fraction of the layers is the trunk, not one of its stages.
# (The largest stage, ResNet-152's third, has 70 %.)
TRUNK = 3 / 4


class _Part(NamedTuple):
    layers: list[nn.Module]
    is_block: bool  # a stage or a block, not a layer between them (e.g. of a stem)


def norm_layers(model: nn.Module) -> list[nn.Module]:
    """The batch, layer, group and instance normalisation layers that have a scale, in order."""
    return [module for module in model.modules()
            if isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
            and module.weight is not None]


def without_last_stage(model: nn.Module) -> list[nn.Module]:
    """The normalisation layers before a network's last stage or last blocks.

    In a network of stages (residual and hierarchical ones) the last quarter of the stages is left
    out; in a network of blocks (vision transformers) the last quarter of the blocks; in any other
    network the last quarter of the layers. At least one is left out, and with it all layers after
    it, e.g. a transformer's final normalisation.
    """
    parts = _parts(model)
    blocks = [index for index, part in enumerate(parts) if part.is_block]
    if len(blocks) < 2:
        layers = [layer for part in parts for layer in part.layers]
        return layers[:len(layers) - _end(len(layers))]
    last = blocks[len(blocks) - _end(len(blocks)) - 1]
    return [layer for part in parts[:last + 1] for layer in part.layers]


def _end(count: int) -> int:
    """How many of `count` parts are left out."""
    return max(1, round(END * count))


def _parts(model: nn.Module) -> list[_Part]:
    """The parts of a network in order: its stages or, if it has none, its blocks, and the layers
    between them."""
    inside = [(child, norm_layers(child)) for child in model.children()]
    inside = [(child, layers) for child, layers in inside if layers]
    total = sum(len(layers) for _, layers in inside)
    for index, (child, layers) in enumerate(inside):
        if layers[0] is not child and len(layers) > TRUNK * total:
            before, after = (
                [_Part([layer], False) for _, outside in children for layer in outside]
                for children in (inside[:index], inside[index + 1:]))
            return [*before, *_parts(child), *after]
    return [_Part(layers, len(layers) > 1) for _, layers in inside]


def train_only(model: Classifier, layers: list[nn.Module], method: str,
               where: str = "") -> list[nn.Parameter]:
    """Make the scales and shifts of `layers` the model's only parameters that require grad.

    Args:
        method: its name, for the error message.
        where: the part of the network that `layers` come from, for the error message.

    Returns:
        These scales and shifts.

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
    """Raise SingleImage for a batch of one image if the method uses the batch's statistics."""
    if uses_batch_statistics and len(images) == 1:
        raise SingleImage(f"{method}: a batch of one image has no batch statistics; {advice}")
