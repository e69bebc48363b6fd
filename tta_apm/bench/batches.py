"""Batches: load the batches of a stream once for all methods, and move them to the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tta_apm.bench import measure
from tta_apm.bench.isolation import IsolationError
from tta_apm.data.dataset import hash_pixels
from tta_apm.data.streams import Stream, prefetched

# Offline methods read each image many times: pixels are cached up to this size, in MiB.
CACHE_MB = 1024


class LoadedBatch(NamedTuple):
    """A batch in memory.

    Args:
        indices: positions in the data set, int64 [B].
        pixels: uint8 [B,H,W,3].
        hashes: one of each image's pixels.
    """

    indices: np.ndarray
    pixels: Tensor
    hashes: list[bytes]


def load_batches(stream: Stream, device: torch.device) -> Iterator[LoadedBatch]:
    """Load and hash the batches of `stream`, each when it is requested."""
    for batch in stream:
        pixels = torch.from_numpy(np.ascontiguousarray(batch.images))
        if device.type == "cuda":  # copies from page-locked memory run asynchronously
            pixels = pixels.pin_memory()
        yield LoadedBatch(batch.indices, pixels, [hash_pixels(image) for image in pixels.numpy()])


def batches_ahead(stream: Stream, device: torch.device) -> Iterator[LoadedBatch]:
    """As load_batches, but with a GPU the next two batches are loaded in the background.

    On a CPU a batch is loaded between the methods' calls, on all cores: in the background it would
    take cores from the method that is being timed.
    """
    loaded = load_batches(stream, device)
    return loaded if device.type == "cpu" else prefetched(loaded)


def to_device(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Move images uint8 [B,H,W,3] to `device`, as float32 [B,3,H,W] in [0,1]."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    pixels = images.to(device, non_blocking=device.type == "cuda")
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)


class BatchOnDevice:
    """The images of a batch on the device, which several methods get one after the other.

    Attributes:
        images: float32 [B,3,H,W] in [0,1].
    """

    def __init__(self, loaded: LoadedBatch, device: torch.device) -> None:
        self.loaded = loaded
        self.images = to_device(loaded.pixels, device)
        self.original = self.images.clone()

    def __len__(self) -> int:
        return len(self.loaded.indices)

    @property
    def copy_mb(self) -> float:
        """The memory of the copy that `check` compares with, in MiB."""
        return self.original.nbytes / measure.MB

    def view(self) -> Tensor:
        """A new tensor object for a method; its memory is shared."""
        return self.images.detach()

    def check(self, cause: BaseException | None = None) -> None:
        """Raise IsolationError from `cause` if a method wrote to the images, and restore them."""
        if self.images.shape != self.original.shape or not torch.equal(self.images, self.original):
            self.images = self.original.clone()
            raise IsolationError(["the images that it was given"]) from cause


class StreamImages:
    """All images of a stream, for an offline method: see method.DomainImages.

    Attributes:
        stopwatch: measures the loading, which is not part of the method's time.
    """

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self.stream = stream
        self.device = device
        self.stopwatch = measure.Stopwatch(device)
        self._cache: dict[int, np.ndarray] = {}  # pixels by position, up to CACHE_MB
        self._cache_bytes = 0

    def __len__(self) -> int:
        return len(self.stream)

    def batch(self, indices: Tensor) -> Tensor:
        with self.stopwatch:
            positions = indices.tolist()
            new = [position for position in positions if position not in self._cache]
            loaded = dict(zip(new, self.stream.images(np.array(new)))) if new else {}
            pixels = np.stack([loaded[position] if position in loaded else self._cache[position]
                               for position in positions])
            self._add_to_cache(loaded)
            return to_device(pixels, self.device)

    def _add_to_cache(self, loaded: dict[int, np.ndarray]) -> None:
        for position, pixels in loaded.items():
            if self._cache_bytes + pixels.nbytes <= CACHE_MB * measure.MB:
                self._cache[position] = pixels.copy()  # a view would keep its whole batch
                self._cache_bytes += pixels.nbytes
