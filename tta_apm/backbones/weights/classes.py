"""LoadedClasses: a classifying network with the weights of a file, for a data set's classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from tta_apm.backbones.weights import files
from tta_apm.backbones.weights import fit as fitting
from tta_apm.errors import UserError


class LoadedClasses(NamedTuple):
    """A network with the weights of a file, and its outputs that are classes of the data set."""

    net: nn.Module
    keep: Sequence[int] | None
    label: str


def load_classes(make: Callable[[int], nn.Module], weights: files.Weights, network: str, *,
                 num_classes: int, keep: Sequence[int] | None = None,
                 rename: fitting.Rename | None = None) -> LoadedClasses:
    """Load a classifying network with the weights of a file.

    Args:
        make: number of outputs -> network.
        weights: the file.
        network: name of the network, for error messages.
        num_classes: its number of outputs.
        keep: indices of the outputs that are classes of the data set; None for all. A file whose
            head has only these outputs is accepted too; they must be in the data set's order.
        rename: see fit.Rename.

    Raises:
        UserError: if the file has other classes or is of another network.
    """
    net = make(num_classes)
    outputs, keep = settle_outputs(weights, net.state_dict(), network, num_classes=num_classes,
                                   keep=keep, rename=rename)
    if outputs != num_classes:
        net = make(outputs)
    wanted = net.state_dict()
    selected = weights.select(network, wanted, rename)
    net.load_state_dict(selected.tensors)
    return LoadedClasses(net, keep, files.describe(selected.label, weights.path))


def settle_outputs(weights: files.Weights, wanted: dict[str, Tensor], network: str, *,
                   num_classes: int, keep: Sequence[int] | None,
                   rename: fitting.Rename | None = None) -> tuple[int, Sequence[int] | None]:
    """The number of outputs that a network needs for the head in a file, and `keep` for them.

    Args: see load_classes; `wanted` is the state_dict of the network with `num_classes` outputs.

    Raises:
        UserError: if the head is of other classes than the data set's.
    """
    found = _num_classes(weights, wanted, num_classes, rename)
    if found == num_classes:
        return num_classes, keep
    if keep is not None and found == len(keep):
        return found, None
    which = "" if keep is None else (
        f", which are {len(keep)} of the {num_classes} outputs of {network}: give weights with "
        "either number of outputs")
    raise UserError(f"{weights.path} has {found} classes, the data set "
                    f"{num_classes if keep is None else len(keep)}{which}")


def _num_classes(weights: files.Weights, wanted: dict[str, Tensor], num_classes: int,
                 rename: fitting.Rename | None) -> int:
    """The number of classes of a file's head if all other tensors fit; else `num_classes`."""
    found = fitting.fits(weights.state_dicts, wanted, rename)
    if any(fit.is_whole for fit in found):
        return num_classes
    for fit in found:
        heads = {name: fit.found[name].shape for name in fit.reshaped
                 if wanted[name].shape[:1] == (num_classes,)}
        sizes = {shape[0] for shape in heads.values() if len(shape)}
        if not fit.missing and not fit.extra and len(sizes) == 1 and len(heads) == len(
                fit.reshaped) and all(shape[1:] == wanted[name].shape[1:]
                                      for name, shape in heads.items()):
            return sizes.pop()
    return num_classes
