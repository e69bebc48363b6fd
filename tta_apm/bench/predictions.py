"""Predictions: the per-image results of a cell, as a .npz file. Imports no torch."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np

# Bytes of the arrays of a cell. An image takes 44, and the largest data set has 50,000 images.
MAX_UNPACKED = 1 << 28


@dataclass(frozen=True)
class Predictions:
    """Per-image results of a cell, in the order of the stream.

    Args:
        index: position in the data set, int64 [N].
        label, prediction: classes, int64 [N].
        confidence: softmax probability of the prediction, float32 [N].
        teacher_prediction: int64 [N]; None for a method without a teacher.
        cosine: between the final features of student and teacher, float32 [N], or None.
    """

    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    teacher_prediction: np.ndarray | None = None
    cosine: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Concatenate predictions."""
        columns = [part._columns() for part in parts]
        return cls(**{name: np.concatenate([column[name] for column in columns])
                      for name in columns[0]})

    def chosen(self, mask: np.ndarray) -> Predictions:
        """The predictions of the images where `mask`, bool [N], is true."""
        return Predictions(**{name: column[mask] for name, column in self._columns().items()})

    def correct(self) -> np.ndarray:
        """Whether each prediction is right, bool [N], ordered by index."""
        return (self.prediction == self.label)[np.argsort(self.index, kind="stable")]

    def teacher_correct(self) -> np.ndarray | None:
        """As `correct`, for the teacher's predictions; None without a teacher."""
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
        """Read an .npz file. ValueError, KeyError, TypeError or BadZipFile if it is invalid."""
        check_npz(content)
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            predictions = cls(**{name: arrays[name] for name in arrays.files})
        predictions._check()
        return predictions

    def _check(self) -> None:
        """Raise ValueError for a column of invalid shape, type or values."""
        for name, column in self._columns().items():
            floats = name in ("confidence", "cosine")
            if column.ndim != 1 or len(column) != len(self.index) or not len(column):
                raise ValueError(f"{name} is of shape {list(column.shape)}")
            if column.dtype.kind not in ("f" if floats else "iu"):
                raise ValueError(f"{name} is {column.dtype}")
            low, high = (-1.001, 1.001) if floats else (0, 1 << 31)
            if not ((column >= low) & (column <= high)).all():  # also for NaN
                raise ValueError(f"{name} has values out of range")

    def _columns(self) -> dict[str, np.ndarray]:
        """The columns that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def check_npz(content: bytes) -> None:
    """Raise ValueError for an archive of more than MAX_UNPACKED bytes, BadZipFile for others."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_UNPACKED:
        raise ValueError(f"it unpacks to {size} bytes, more than any run writes")
