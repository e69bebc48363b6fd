"""Batches on their way from the data set to the methods: fetched once, handed to each in turn;
and all images of a stream, for offline methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tta_apm.bench import measure
from tta_apm.bench.isolation import Trespass
from tta_apm.data.dataset import hash_pixels
from tta_apm.data.streams import Stream, prefetched

# Offline methods look at each image many times: so many MiB of pixels are kept.
KEPT_MB = 1024


class Loaded(NamedTuple):
    """A batch in memory.

    Args:
        indices: positions in the data set, int64 [B].
        pixels: uint8 [B,H,W,3].
        hashes: of each image's pixels.
    """

    indices: np.ndarray
    pixels: Tensor
    hashes: list[bytes]


def load_batches(stream: Stream, device: torch.device) -> Iterator[Loaded]:
    """The batches of `stream`, fetched and hashed when they are asked for."""
    for batch in stream:
        pixels = torch.from_numpy(np.ascontiguousarray(batch.images))
        if device.type == "cuda":  # page-locked memory is copied without the CPU
            pixels = pixels.pin_memory()
        yield Loaded(batch.indices, pixels, [hash_pixels(image) for image in pixels.numpy()])


def batches_ahead(stream: Stream, device: torch.device) -> Iterator[Loaded]:
    """As load_batches; while a GPU is at work the next two are fetched.

    On a CPU a batch is fetched by all cores between the methods' turns: beside a method it would
    take the cores that are being timed, and gain nothing, as there are no others.
    """
    loaded = load_batches(stream, device)
    return loaded if device.type == "cpu" else prefetched(loaded)


def to_device(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in [0,1] on `device`; travels as uint8."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    pixels = images.to(device, non_blocking=device.type == "cuda")
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)


class Handed:
    """The images of a batch on the device, as they are handed to one method after the other.

    Attributes:
        images: float32 [B,3,H,W] in [0,1].
    """

    def __init__(self, batch: Loaded, device: torch.device) -> None:
        self.batch = batch
        self.images = to_device(batch.pixels, device)
        self.original = self.images.clone()

    def __len__(self) -> int:
        return len(self.batch.indices)

    @property
    def spare_mb(self) -> float:
        """Memory that no method has a part in."""
        return self.original.nbytes / measure.MB

    def hand_out(self) -> Tensor:
        """The images as a tensor of the caller's own, whose memory all share."""
        return self.images.detach()

    def check(self, cause: BaseException | None = None) -> None:
        """Raise Trespass, of a cause, if the images were written to; they are then as before."""
        if self.images.shape != self.original.shape or not torch.equal(self.images, self.original):
            self.images = self.original.clone()
            raise Trespass(["the images that it was handed"]) from cause


class StreamImages:
    """All images of a stream as an offline method takes them: see method.DomainImages.

    Attributes:
        stopwatch: of the time that fetching took, which is none of the method's.
    """

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self.stream = stream
        self.device = device
        self.stopwatch = measure.Stopwatch(device)
        self._kept: dict[int, np.ndarray] = {}  # pixels by position, up to KEPT_MB
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.stream)

    def batch(self, indices: Tensor) -> Tensor:
        with self.stopwatch:
            positions = indices.tolist()
            new = [position for position in positions if position not in self._kept]
            fetched = dict(zip(new, self.stream.images(np.array(new)))) if new else {}
            pixels = np.stack([fetched[position] if position in fetched else self._kept[position]
                               for position in positions])
            self._keep(fetched)
            return to_device(pixels, self.device)

    def _keep(self, fetched: dict[int, np.ndarray]) -> None:
        for position, pixels in fetched.items():
            if self._kept_bytes + pixels.nbytes <= KEPT_MB * measure.MB:
                self._kept[position] = pixels.copy()  # not a view, which would keep its batch
                self._kept_bytes += pixels.nbytes
