"""FeatureCache: a teacher's features of all images, computed once and memory-mapped from disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tta_apm.atomic import atomic_path, atomic_write, remove_leftovers
from tta_apm.errors import UserError


class FeatureCache:
    """Image features [N,D] and grids [N,L,D], float16, in a folder of memory-mapped arrays.

    It can be filled in any order and interrupted at any time: images marked as done are kept.

    Args:
        folder: it is created if needed.
        files: the N images.
        teacher: a text that identifies the teacher; a folder of another teacher is refused.
        num_columns, feature_dim: L and D.

    Raises:
        UserError: if the folder holds features of other images or another teacher, cannot be
            written to, or has too little space.
    """

    def __init__(self, folder: Path, files: Sequence[Path], teacher: str, num_columns: int,
                 feature_dim: int) -> None:
        listing = "\n".join(f"{file} {file.stat().st_size}" for file in files)
        about = {"teacher": teacher, "num_images": len(files), "num_columns": num_columns,
                 "feature_dim": feature_dim,
                 "images": hashlib.sha256(listing.encode()).hexdigest()[:16]}
        shapes = {"features": (len(files), feature_dim),
                  "grids": (len(files), num_columns, feature_dim)}
        note = folder / "cache.json"
        try:
            if note.is_file():
                if json.loads(note.read_text(encoding="utf-8")) != about:
                    raise UserError(f"CACHE {folder} holds the features of other images or of "
                                    "another teacher: choose another folder, or delete it")
            else:
                _create(folder, shapes)
                atomic_write(note, json.dumps(about, indent=1).encode())
            self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+",
                                          allow_pickle=False)
                            for name in (*shapes, "done")}
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"CACHE {folder} cannot be used: {error}") from error

    def missing(self) -> np.ndarray:
        """Indices of the images without features yet."""
        return np.flatnonzero(self._arrays["done"] == 0)

    def put(self, indices: np.ndarray, features: Tensor, grids: Tensor) -> None:
        """Store the features [n,D] and grids [n,L,D] of images int [n], then mark them as done."""
        for name, values in (("features", features), ("grids", grids)):
            self._arrays[name][indices] = values.half().cpu().numpy()
            self._arrays[name].flush()
        self._arrays["done"][indices] = 1
        self._arrays["done"].flush()

    def get(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features [n,D] and grids [n,L,D], float32, of images int [n] that are done."""
        features, grids = (torch.from_numpy(self._arrays[name][indices]).float()
                           for name in ("features", "grids"))
        return features, grids


def _create(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    needed = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"CACHE {folder} would take {needed / 1e9:.1f} GB and {free / 1e9:.1f} are "
                        "free: choose another folder, or leave CACHE empty to run the teacher at "
                        "each step")
    for name, shape in shapes.items():
        _write_zeros(folder / f"{name}.npy", np.dtype(np.float16), shape)
    _write_zeros(folder / "done.npy", np.dtype(np.uint8), shapes["features"][:1])


def _write_zeros(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write an array of zeros in full, not as a sparse file: if the disk is full, a memory-mapped
    write into a hole of a sparse file kills the process (bus error)."""
    with atomic_path(file) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {
            "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        left = dtype.itemsize * int(np.prod(shape))
        while left:
            left -= stream.write(bytes(min(left, 1 << 24)))
