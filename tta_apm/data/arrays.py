"""arrays: images and labels in .npy files.

In all functions, `advice` says how to get the right file, for error messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tta_apm.errors import UserError, corrupt


def open_array(file: Path, shape: tuple[int, ...], advice: str) -> np.ndarray:
    """A memory-mapped uint8 array of `shape`; UserError if the file holds anything else."""
    array = _memory_map(file, advice)
    if array.dtype != np.uint8 or array.shape != shape:
        raise UserError(f"{file} holds {array.dtype} {list(array.shape)} instead of uint8 "
                        f"{list(shape)}. {advice}")
    return array


def read_labels(file: Path, counts: Sequence[int], num_classes: int, advice: str) -> np.ndarray:
    """Labels int64 [N] with N in `counts`; UserError if the file holds anything else."""
    array = _memory_map(file, advice)
    if array.dtype.kind not in "iu" or array.shape not in [(count,) for count in counts]:
        raise UserError(f"{file} holds {array.dtype} {list(array.shape)} instead of "
                        f"{' or '.join(map(str, counts))} integers. {advice}")
    check_range(file, array, num_classes, advice)
    return np.array(array, np.int64)


def check_range(file: Path, labels: np.ndarray, num_classes: int, advice: str) -> None:
    """Raise UserError unless all labels are in range(num_classes)."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise UserError(f"{file} holds the label {wrong[0]}, but there are {num_classes} classes. "
                        f"{advice}")


def _memory_map(file: Path, advice: str) -> np.ndarray:
    """The memory-mapped array in a .npy file, which is never unpickled."""
    if not file.is_file():
        raise UserError(f"file not found: {file}. {advice}")
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise corrupt(file, error, f"Delete it. {advice}", kind="a .npy file") from error
