"""Files of weights: finding them, reading them, and explaining why they do not fit.

All weights are read here: users' files, packaged files and downloads. A library that reads a file
itself is called within `reading()`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tta_apm.backbones.weights import archives
from tta_apm.backbones.weights import fit as fitting
from tta_apm.backbones.weights import trees
from tta_apm.backbones.weights.inert import Inert, Lazy
from tta_apm.backbones.weights.lookalikes import lookalike
from tta_apm.errors import UserError

#: Weights that come with this package.
PACKAGED = Path(__file__).parents[1] / "shipped"

# Separates the name of a file from that of a set of weights in it.
KEY = "#"
_LOCK = threading.RLock()  # held while torch's loading functions are replaced


def find(weights: str) -> Path | None:
    """The file that `weights` names: a path, or the bare name of a packaged file; else None.

    For "FILE#SET", one of several sets of weights in a file, it is that file.
    """
    return _split(weights)[0]


def _split(weights: str) -> tuple[Path | None, str]:
    """The file that `weights` names, and the name of the set in it, "" for none."""
    whole = _find(weights)
    if whole is not None or KEY not in weights:
        return whole, ""
    name, _, key = weights.rpartition(KEY)
    return _find(name), key.strip("/")


def _find(weights: str) -> Path | None:
    path = Path(weights).expanduser()
    if not weights:
        return None
    if path.is_file():
        return path
    packaged = PACKAGED / weights
    return packaged if path.name == weights and packaged.is_file() else None


def looks_like_file(weights: str) -> bool:
    """Whether `weights` has a folder or an extension, so that it means a file."""
    return Path(weights).name != weights or bool(Path(weights).suffix)


def describe(name: str, file: Path) -> str:
    """`name` and the short hash of `file`, for the record."""
    return f"{name} {sha256(file)[:16]}"


def sha256(file: Path) -> str:
    """The hash of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# Reading them

class Weights:
    """A file of weights that was found.

    Args:
        path: of the file.
        key: name of one of the sets in it; "" chooses the one that fits.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self.path = path
        self.key = key

    @cached_property
    def content(self) -> archives.Content:
        """The contents of the file. UserError if it is not a checkpoint."""
        return archives.read(self.path)

    @cached_property
    def state_dicts(self) -> dict[str, dict[str, trees.Entry]]:
        """See trees.state_dicts. UserError for a file without tensors."""
        with archives.reading_errors(self.path):
            found = trees.state_dicts(self.content)
        if not found:
            raise UserError(f"{self.path} is not a checkpoint of weights: it holds no tensors")
        return found

    def select(self, network: str, wanted: dict[str, Tensor],
               rename: fitting.Rename | None = None) -> Selected:
        """The tensors of a network.

        Args:
            network: its name.
            wanted: its state_dict.
            rename: see fit.Rename.

        Raises:
            UserError: if no set of weights fits, or if several fit and no key chooses one.
        """
        found = fitting.fits(self.state_dicts, wanted, rename)
        choice = fitting.choose_fit(found, self.key)
        if choice.fit is None:
            self._refuse(network, found, choice.others, wanted)
        assert choice.fit is not None
        with archives.reading_errors(self.path):
            tensors = fitting.read(choice.fit, wanted)
        is_one_of_several = self.key or choice.others or choice.fit.is_averaged
        label = self.path.name
        if is_one_of_several:
            label += f"{KEY}{choice.fit.label}"
        return Selected(tensors, label)

    def _refuse(self, network: str, found: Sequence[fitting.Fit], fitting_sets: Sequence[str],
                wanted: dict[str, Tensor]) -> None:
        """Raise UserError, which says why no set of weights could be chosen."""
        if len(fitting_sets) > 1:
            names = ", ".join(repr(label) for label in fitting_sets)
            raise UserError(f"{self.path} holds {len(fitting_sets)} sets of weights that fit "
                            f"{network}: {names}. Say which, as in {self.path.name}{KEY}"
                            f"{fitting_sets[0]}")
        whole = [fit.label for fit in found if fit.is_whole]
        if self.key and whole:
            raise UserError(f"{self.path} has no set of weights {self.key!r}; those that fit "
                            f"{network} are {', '.join(map(repr, whole))}")
        largest = max(self.state_dicts.values(), key=len)
        hint = fitting.kinds(self.state_dicts)
        like = lookalike(fitting.shapes(largest)) or (
            lookalike(fitting.shapes(found[0].all)) if found else "")
        hint += f"; it looks like {like}" if like else ""
        what = (fitting.mismatch(found[0], wanted) if found else
                f"none of its {len(largest)} tensors, e.g. {sorted(largest)[0]}, has the name "
                "of one of the network's")
        raise UserError(f"{self.path} is of another network than {network}: {what}{hint}")


class Selected(NamedTuple):
    """The tensors of a network, and a label: the file's name and, if it has several sets, theirs.
    """

    tensors: dict[str, Tensor]
    label: str


def open_weights(weights: str) -> Weights | None:
    """The file (see `find`) and the set in it that `weights` names; None if there is no file."""
    path, key = _split(weights)
    return None if path is None else Weights(path, key)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors by name of a file that holds one state dict, of any network.

    If it holds several, one under a usual name (e.g. "state_dict") is taken.

    Raises:
        UserError: if the file is not a checkpoint, or holds several without a usual name.
    """
    sets = Weights(file).state_dicts
    names = [name for name in (*_USUAL, *sets) if name in sets and (name in _USUAL or len(
        sets) == 1)]
    if not names:
        raise UserError(f"{file} holds {len(sets)} sets of tensors: {', '.join(map(repr, sets))}")
    entries = sets[names[0]]
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in entries):
            entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    with archives.reading_errors(file):
        return {name: entry.read() if isinstance(entry, Lazy) else entry
                for name, entry in entries.items() if not isinstance(entry, Inert)}


# In timm's order, which prefers averaged weights.
_USUAL = ("state_dict_ema", "model_ema", "state_dict", "model", "")


class LoadedClasses(NamedTuple):
    """A network with the weights of a file, and its outputs that are classes of the data set."""

    net: nn.Module
    keep: Sequence[int] | None
    label: str


def load_classes(make: Callable[[int], nn.Module], weights: Weights, network: str, *,
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
    return LoadedClasses(net, keep, describe(selected.label, weights.path))


def settle_outputs(weights: Weights, wanted: dict[str, Tensor], network: str, *,
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
    kept = "" if keep is None else (
        f", which are {len(keep)} of the {num_classes} outputs of {network}: give weights with "
        "either number of outputs")
    raise UserError(f"{weights.path} has {found} classes, the data set "
                    f"{num_classes if keep is None else len(keep)}{kept}")


def _num_classes(weights: Weights, wanted: dict[str, Tensor], num_classes: int,
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


# Files that libraries read themselves

@contextmanager
def reading(instead: Path | None = None) -> Iterator[None]:
    """A context in which this module's reader replaces torch's functions that load files.

    So a library that calls torch.load runs no code of the file.

    Args:
        instead: the file to read in place of the requested one.
    """
    def load(file: Any, *args: Any, **options: Any) -> Any:
        path = instead or Path(file)
        content = archives.read(path)
        with archives.reading_errors(path):
            return trees.plain(content)

    with _LOCK:
        functions = [(torch, "load"), (torch.serialization, "load"), (torch.jit, "load")]
        before = [getattr(module, name) for module, name in functions]
        try:
            for module, name in functions:
                setattr(module, name, load)
            yield
        finally:
            for (module, name), function in zip(functions, before):
                setattr(module, name, function)
