"""Libraries: what the loaders of networks of timm, torchvision and robustbench share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from torch import nn

from tta_apm.backbones.inputs import InputKeys, InputSpec
from tta_apm.backbones.weights import files
from tta_apm.errors import UserError, explain, nearest
from tta_apm.lock import locked

SECTION = "CLASSIFIER"  # of the config, for error messages


class Request(NamedTuple):
    """The network that a config names.

    Attributes:
        name: its name within the library.
        weights: WEIGHTS of the config.
        num_classes: number of outputs of the network.
        keep: see Backbone.
        keys: the config's keys for its images.
    """

    name: str
    weights: str
    num_classes: int
    keep: Sequence[int] | None
    keys: InputKeys


class LoadedNetwork(NamedTuple):
    """A network with its weights.

    Attributes:
        net: the network.
        keep: see Backbone.
        inputs: the images that it takes.
        weights: name and hash of its weights, for the record.
    """

    net: nn.Module
    keep: Sequence[int] | None
    inputs: InputSpec
    weights: str


def download(load: Callable[[], nn.Module], source: str, file: Path | None) -> nn.Module:
    """Call a library's loader, which downloads `source` (to `file`) unless it is cached.

    One process at a time, since robustbench's file exists while it is still being written.
    """
    alone = nullcontext() if file is None else locked(file.parent, "downloads")
    try:
        with alone, files.reading():
            return load()
    except Exception as error:  # every downloader raises its own kind of error
        advice = "" if file is None else (
            f". If it cannot be downloaded here, get it where there is a network and put it at "
            f"{file}; if an interrupted download left that file, delete it")
        raise UserError(f"{source} does not load: {explain(error)}{advice}") from error


def check_known(name: str, known: Iterable[str], library: str) -> None:
    """Raise UserError unless a library has a model of this name."""
    known = set(known)
    if name not in known:
        raise UserError(f"CLASSIFIER.MODEL: {library} has no {name!r}: {nearest(name, known)}")


def check_classes(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise UserError(f"{what} has {found} classes, the data set {wanted}: give weights of that "
                        "data set as CLASSIFIER.WEIGHTS")
