"""Record: write, read and find the cells of a sweep. Imports no torch.

A cell is row × domain × seed. Its predictions, <cell>.npz, and its record, <cell>.json, are written
atomically, the record last: a cell is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tta_apm.atomic import atomic_write, is_temporary
from tta_apm.bench.predictions import Predictions
from tta_apm.errors import UserError, corrupt, reason

# Fields that records of earlier versions lack.
LATER = frozenset({"identity", "preprocessing", "did", "crowded"})


@dataclass(frozen=True)
class Record:
    """One cell, flat. Error and accuracy are not stored: they follow from the predictions."""

    row: str  # the entry of METHODS, e.g. "apm STEPS 10"
    method: str
    hyper_parameters: dict[str, Any]
    scope: str  # see Method.scope
    survives: str  # see Method.survives
    backbone: str
    weights: str
    templates: str  # the name of the prompt templates, "" without prompts
    resolution: int  # side in pixels of the backbone's images, 0: that of the data set's images
    dataset: str
    corruption: str
    severity: int
    images_from: str
    num_images: int
    images_hash: str  # of the pixels, independent of their order
    setting: str
    order: str  # of the stream
    batch_size: int
    seed: int
    num_correct: int
    seconds: float  # adapt + predict, synchronised, after warm-up
    peak_memory_mb: float
    gflops_per_image: float | None  # 2 per multiply-add, forward and backward; None: not counted
    device: str
    fingerprint: str  # a hash of `identity`
    code: str  # a hash of the code that decides the numbers
    commit: str
    predictions_hash: str
    versions: dict[str, str] = field(default_factory=dict)
    # The backbone's preprocessing: size, mean, std, where these are from, and the activation if
    # the weights do not show it. "" in records of version 0.1.0.
    preprocessing: str = ""
    # Everything that decides the numbers: see identity.py. Empty in records of version 0.1.0.
    identity: dict[str, Any] = field(default_factory=dict)
    # Counts of the method's work over all images: see counts.COUNTED. Empty in older records.
    did: dict[str, float] = field(default_factory=dict)
    # Whether other processes used the same device or cores: the seconds are then too high.
    crowded: bool = False


def save_cell(path: Path, record: Record, content: bytes) -> None:
    """Write a cell: `content` (Predictions.to_bytes) to path.npz, then its record to path.json.

    An old record is removed first, so that it never exists beside the new predictions.

    Raises:
        ValueError, TypeError: if JSON cannot hold the record; no file is changed then.
        UserError: if a file cannot be written.
    """
    text = json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False)
    _remove(path.with_name(path.name + ".json"))
    atomic_write(path.with_name(path.name + ".npz"), content)
    atomic_write(path.with_name(path.name + ".json"), text.encode())


def remove_cell(path: Path) -> None:
    """Remove a cell's record, then its predictions. UserError if they cannot be removed."""
    for suffix in (".json", ".npz"):
        _remove(path.with_name(path.name + suffix))


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot replace {file}: {reason(error)}") from error


def load_record(path: Path) -> Record:
    """Read <cell>.json. UserError if it is incomplete or not a record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Record)}
        if not isinstance(content, dict) or known - set(content) - LATER or set(content) - known:
            raise ValueError("it does not have the fields of a record")
        record = Record(**content)
        _check_fields(record)
        return record
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is incomplete or not a record of ours ({error}): delete or move "
                        "it, then run again; only that cell is repeated") from error


def _check_fields(record: Record) -> None:
    """Raise ValueError for a field of invalid type or value."""
    for name, kinds in _KINDS.items():
        value = getattr(record, name)
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
            raise ValueError(f"{name} is {type(value).__name__}")
        if isinstance(value, (int, float)) and not 0 <= value < 1 << 63:  # also for NaN
            raise ValueError(f"{name} is out of range")
    if not 0 <= record.severity <= 5:
        raise ValueError(f"severity is {record.severity}")
    if not all(isinstance(count, (int, float)) and 0 <= count < 1 << 63
               for count in record.did.values()):
        raise ValueError(f"did is {record.did}")
    if record.num_images < 1 or record.num_correct > record.num_images:
        raise ValueError(f"num_correct is {record.num_correct} of {record.num_images} images")


# The types of a record's fields, as read from JSON.
_NUMBER = (int, float)
_TYPES: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": _NUMBER,
                          "float | None": (*_NUMBER, type(None))}
_KINDS: dict[str, Any] = {field.name: _TYPES.get(str(field.type), dict)
                          for field in fields(Record)}


def load_predictions(path: Path, record: Record) -> Predictions:
    """Read <cell>.npz of `record`, which is at path <cell>.json. UserError if it is corrupt."""
    file = path.with_suffix(".npz")
    try:
        content = file.read_bytes()
        if hash_bytes(content) != record.predictions_hash:
            raise ValueError("its content is not what the record says")
        return Predictions.from_bytes(content)
    except (ValueError, OSError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise corrupt(file, error, f"Delete or move {path}, then run again: only that cell is "
                      "repeated") from error


def find_records(folder: Path) -> Iterator[Path]:
    """The record files below `folder`, sorted; links to folders are followed.

    Raises:
        UserError: if a file does not belong to a sweep, a folder cannot be read, or a link is
            broken or circular.
    """
    yield from sorted(_records(folder, ())) if os.path.lexists(folder) else ()


def _records(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    try:
        here = folder.resolve(strict=True)
        if here in above:
            raise UserError(f"{folder} is a link to a folder that contains it: remove it")
        entries = sorted(folder.iterdir())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot look for cells in {folder}: {reason}") from error
    for path in entries:
        # Files of operating systems and file managers: .DS_Store, .nfs000..., Thumbs.db.
        if path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini") \
                or is_temporary(path):
            continue
        if path.is_dir():
            yield from _records(path, (*above, here))
        elif path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a broken link: repair or remove it")
        elif path.suffix == ".json":
            yield path
        elif path.suffix != ".npz":
            raise UserError(f"{path} is not a file of a sweep: move it out of {folder}")


def hash_bytes(content: bytes) -> str:
    """A sha256 of `content`, cut to 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]
