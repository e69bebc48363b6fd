"""The Python version of CIFAR-10 and CIFAR-100: pickles, read without running their code.

See tta_apm.pickles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tta_apm.errors import UserError, corrupt
from tta_apm.pickle_objects import Malformed, PickledArray
from tta_apm.pickles import unpickle

# The official files take a tenth more than their pixels.
LARGEST = 4


def read_batch(file: Path, num_images: int, row: int, label_key: str, advice: str
               ) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N,row] and labels int64 [N] of one file.

    Args:
        num_images: N.
        row: bytes per image.
        label_key: key of the labels in the file's dict: "labels" or "fine_labels".
        advice: how to get the right file, for error messages.

    Raises:
        UserError: if the file is not found or holds anything else.
    """
    if not file.is_file():
        raise UserError(f"file not found: {file}. {advice}")
    if file.stat().st_size > LARGEST * num_images * row:
        raise UserError(f"{file} has {file.stat().st_size} bytes, far more than {num_images} "
                        f"images. {advice}")
    try:
        with open(file, "rb") as stream:
            content = unpickle(stream)
    except (Malformed, OSError) as error:
        raise corrupt(file, error, advice, kind="a batch of CIFAR") from error
    found = _by_text(content) if isinstance(content, dict) else {}
    data, labels = found.get("data"), found.get(label_key)
    pixels = data.numbers() if isinstance(data, PickledArray) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (num_images, row):
        held = "no array" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
        raise UserError(f"{file} holds {held} as its data instead of uint8 {[num_images, row]}. "
                        f"{advice}")
    if not isinstance(labels, list) or len(labels) != num_images or any(
            type(label) is not int for label in labels):
        raise UserError(f"{file} has no list of {num_images} {label_key}. {advice}")
    return pixels, np.array(labels, np.int64)


def _by_text(content: dict[Any, Any]) -> dict[str, Any]:
    """The items with their keys as str, which are bytes in some files."""
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value
            for key, value in content.items()}
