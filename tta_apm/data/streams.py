"""Stream: the batches of one run, the same for every method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tta_apm.data.dataset import DataSet, Domain
from tta_apm.errors import UserError


class Batch(NamedTuple):
    """Images uint8 [B,H,W,3] with their labels int64 [B] and positions in the data set [B]."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


class Stream:
    """The batches of one domain.

    The order depends on the data set, the number of images and the seed only: every method and
    every domain sees the images in the same order, shuffled by the seed. A last batch that would
    hold one image joins the one before: a single image has no batch statistics.

    Raises:
        UserError: if the data set has fewer than `num_images` images (-1 asks for all).
    """

    order = "shuffled"

    def __init__(self, dataset: DataSet, domain: Domain, *, num_images: int, batch_size: int,
                 seed: int) -> None:
        available = len(dataset.labels)
        if num_images > available:
            raise UserError(f"NUM_IMAGES {num_images}: {dataset.name} has {available} images")
        count = available if num_images < 0 else num_images
        self.dataset = dataset
        self.domain = domain
        self.batch_size = batch_size
        self.indices = np.random.default_rng(seed).permutation(count)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        for indices in self._split():
            images = self.dataset.images(self.domain, indices)
            yield Batch(images, self.dataset.labels[indices], indices)

    def _split(self) -> list[np.ndarray]:
        bounds = list(range(self.batch_size, len(self.indices), self.batch_size))
        if bounds and self.batch_size > 1 and len(self.indices) - bounds[-1] == 1:
            bounds.pop()
        return np.split(self.indices, bounds)


def domains(dataset: str, names: Sequence[str], severities: Sequence[int]) -> list[Domain]:
    """The domains of a sweep, severity by severity; severity 0 gives the clean one."""
    wanted = []
    for severity in severities:
        if severity == 0:
            wanted.append(Domain(dataset, "clean", 0))
        else:
            wanted += [Domain(dataset, name, severity) for name in names]
    return wanted
