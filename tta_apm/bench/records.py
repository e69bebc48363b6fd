"""Record and Predictions: what one cell of a sweep leaves on disk. Imports no torch.

A cell is a method under a protocol × domain × seed. Its files, <cell>.npz and <cell>.json, are
written aside and renamed, the record last: a cell is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tta_apm.atomic import atomic_write, is_temporary
from tta_apm.errors import UserError, corrupt, reason

# Bytes of the arrays of a cell: 44 for an image, of which the largest data set has 50,000.
MAX_UNPACKED = 1 << 28


# Fields that records of earlier versions have not.
LATER = frozenset({"identity", "preprocessing", "did", "crowded"})


@dataclass(frozen=True)
class Record:
    """One cell, flat. Error and accuracy are not stored: they follow from the predictions."""

    row: str  # the method as the config names it, with its overrides: "apm STEPS 10"
    method: str
    hyper_parameters: dict[str, Any]
    scope: str  # what a result depends on: see Method.scope
    survives: str  # from image to image: "nothing", "weights"
    backbone: str
    weights: str
    templates: str  # prompt set, "" where there are no prompts
    resolution: int  # side in pixels that the backbone works at, 0 = that of the images
    dataset: str
    corruption: str
    severity: int
    images_from: str
    num_images: int
    images_hash: str  # of the pixels, whatever their order
    setting: str
    order: str  # of the stream
    batch_size: int
    seed: int
    num_correct: int
    seconds: float  # adapt + predict, synchronised, after warm-up
    peak_memory_mb: float
    gflops_per_image: float | None  # 2 per multiply-add, forward and backward; None: uncounted
    device: str
    fingerprint: str  # of everything in the config that decides the numbers
    code: str  # hash of the sources that make the numbers
    commit: str
    predictions_hash: str
    versions: dict[str, str] = field(default_factory=dict)
    # How the backbone makes images ready: size, mean, std, who told them, the activation if it
    # cannot be seen in the weights. "" in records of 0.1.0.
    preprocessing: str = ""
    # What made the numbers, in parts: see identity.py. Empty in records of version 0.1.0.
    identity: dict[str, Any] = field(default_factory=dict)
    # What the method did, over all images: see deeds.DEEDS. Empty in older records.
    did: dict[str, float] = field(default_factory=dict)
    # Whether other processes ran cells on the same device or cores, so that the seconds say little.
    crowded: bool = False


@dataclass(frozen=True)
class Predictions:
    """Per-image results of a cell, in the order of the stream.

    Args:
        index: position in the data set, int64 [N].
        label, prediction: classes, int64 [N].
        confidence: softmax probability of the prediction, float32 [N].
        teacher_prediction: int64 [N], for methods with a teacher, else None.
        cosine: of the student's and the teacher's feature at the end, float32 [N], or None.
    """

    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    teacher_prediction: np.ndarray | None = None
    cosine: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Several as one, in their order."""
        columns = [part._columns() for part in parts]
        return cls(**{name: np.concatenate([column[name] for column in columns])
                      for name in columns[0]})

    def chosen(self, mask: np.ndarray) -> Predictions:
        """Those of the images that `mask` bool [N] is true for."""
        return Predictions(**{name: column[mask] for name, column in self._columns().items()})

    def correct(self) -> np.ndarray:
        """Whether each prediction is right, bool [N], ordered by index."""
        return (self.prediction == self.label)[np.argsort(self.index, kind="stable")]

    def teacher_correct(self) -> np.ndarray | None:
        """Whether each of the teacher's predictions is right, bool [N], ordered by index."""
        if self.teacher_prediction is None:
            return None
        return (self.teacher_prediction == self.label)[np.argsort(self.index, kind="stable")]

    def to_bytes(self) -> bytes:
        """An .npz file; equal predictions give equal bytes."""
        buffer = BytesIO()
        np.savez_compressed(buffer, **self._columns())  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Predictions:
        """Read an .npz file. ValueError, KeyError, TypeError or BadZipFile if it is none of ours.
        """
        check_npz(content)
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            predictions = cls(**{name: arrays[name] for name in arrays.files})
        predictions._check()
        return predictions

    def _check(self) -> None:
        """ValueError that names the column that no run leaves."""
        for name, column in self._columns().items():
            floats = name in ("confidence", "cosine")
            if column.ndim != 1 or len(column) != len(self.index) or not len(column):
                raise ValueError(f"{name} is of shape {list(column.shape)}")
            if column.dtype.kind not in ("f" if floats else "iu"):
                raise ValueError(f"{name} is {column.dtype}")
            low, high = (-1.001, 1.001) if floats else (0, 1 << 31)
            if not ((column >= low) & (column <= high)).all():  # nor is NaN
                raise ValueError(f"{name} has values out of range")

    def _columns(self) -> dict[str, np.ndarray]:
        """The arrays that are there."""
        return {name: value for name, value in vars(self).items() if value is not None}


def save_cell(path: Path, record: Record, content: bytes) -> None:
    """Write a cell: `content` (Predictions.to_bytes) to path.npz, then its record to path.json.

    A record that is there goes first, so that at no moment it stands beside other predictions.

    Raises:
        ValueError, TypeError: for a record that JSON cannot hold; nothing is touched then.
        UserError: if a file cannot be written.
    """
    text = json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False)
    _remove(path.with_name(path.name + ".json"))
    atomic_write(path.with_name(path.name + ".npz"), content)
    atomic_write(path.with_name(path.name + ".json"), text.encode())


def remove_cell(path: Path) -> None:
    """Remove a cell's record, then its predictions. UserError if they cannot be removed."""
    for ending in (".json", ".npz"):
        _remove(path.with_name(path.name + ending))


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot replace {file}: {reason(error)}") from error


def load_record(path: Path) -> Record:
    """Read <cell>.json. UserError naming the file if it is truncated or not one of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Record)}
        if not isinstance(content, dict) or known - set(content) - LATER or set(content) - known:
            raise ValueError("it has not the fields of a record")
        record = Record(**content)
        _check_fields(record)
        return record
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is incomplete or not a record of ours ({error}): delete or move "
                        "it, then run again; only that cell is run anew") from error


def _check_fields(record: Record) -> None:
    """ValueError that names the field whose value no run leaves."""
    for name, kinds in _KINDS.items():
        value = getattr(record, name)
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
            raise ValueError(f"{name} is {type(value).__name__}")
        if isinstance(value, (int, float)) and not 0 <= value < 1 << 63:  # nor is NaN
            raise ValueError(f"{name} is out of range")
    if not 0 <= record.severity <= 5:
        raise ValueError(f"severity is {record.severity}")
    if not all(isinstance(count, (int, float)) and 0 <= count < 1 << 63
               for count in record.did.values()):
        raise ValueError(f"did is {record.did}")
    if record.num_images < 1 or record.num_correct > record.num_images:
        raise ValueError(f"num_correct is {record.num_correct} of {record.num_images} images")


# The types of a record's fields, as JSON gives them.
_NUMBER = (int, float)
_TYPES: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": _NUMBER,
                          "float | None": (*_NUMBER, type(None))}
_KINDS: dict[str, Any] = {field.name: _TYPES.get(str(field.type), dict)
                          for field in fields(Record)}


def load_predictions(path: Path, record: Record) -> Predictions:
    """Read <cell>.npz of `record`, which lies at <cell>.json. UserError if it is not whole."""
    file = path.with_suffix(".npz")
    try:
        content = file.read_bytes()
        if hash_bytes(content) != record.predictions_hash:
            raise ValueError("its content is not what the record says")
        return Predictions.from_bytes(content)
    except (ValueError, OSError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise corrupt(file, error, f"Delete or move {path}, then run again: only that cell is run "
                      "anew") from error


def find_records(folder: Path) -> Iterator[Path]:
    """The record files below `folder`, sorted; folders that are links are followed.

    Raises:
        UserError: for a file that is none of ours, a folder that cannot be read, a link to nothing
            or in a circle.
    """
    yield from sorted(_records(folder, ())) if os.path.lexists(folder) else ()


def _records(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    try:
        here = folder.resolve(strict=True)
        if here in above:
            raise UserError(f"{folder} is a link to a folder that it lies in: remove it")
        entries = sorted(folder.iterdir())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot look for cells in {folder}: {reason}") from error
    for path in entries:
        # What systems and file managers leave in a folder: .DS_Store, .nfs000..., Thumbs.db.
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


def check_npz(content: bytes) -> None:
    """ValueError for an archive whose arrays are far larger than itself. BadZipFile for none."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_UNPACKED:
        raise ValueError(f"it unpacks to {size} bytes, more than any run leaves")


def hash_bytes(content: bytes) -> str:
    """Short sha256 of `content`, 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]
