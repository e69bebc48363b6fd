"""Files of weights: finding them, reading them, and explaining why they do not fit.

All weights are read here: users' files, packaged files and downloads. A library that reads a file
itself is called within `reading()`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def require_weights(section: str, weights: str, advice: str = "") -> Weights:
    """The file that the key WEIGHTS of a config's section names.

    Args:
        section: its name, for the error.
        weights: see open_weights.
        advice: a sentence for the error: where such a file comes from.

    Raises:
        UserError: if the file is not found.
    """
    file = open_weights(weights)
    if file is None:
        raise UserError(f"{section}.WEIGHTS: file not found: {weights!r}"
                        + (f". {advice}" if advice else ""))
    return file


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
