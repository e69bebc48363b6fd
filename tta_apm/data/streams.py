"""Stream: the batches for a method, the same for every method; and the settings.

A setting determines the domains of each stream and when a method is reset:
- reset_each_domain: one stream per domain, with a reset before each;
- continual: the same streams, with a reset before the first only;
- gradual: as continual, but each corruption's severities rise and fall (1 2 3 4 5 4 3 2 1);
- mixed_domains: one stream of all domains, shuffled together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from tta_apm.data.dataset import CLEAN, DataSet, Domain
from tta_apm.errors import UserError

SETTINGS = ("reset_each_domain", "continual", "gradual", "mixed_domains")
ORDERS = ("shuffled", "dirichlet", "sorted")

T = TypeVar("T")


class Batch(NamedTuple):
    """Images of one batch, without labels, which are looked up after the method's forward.

    Args:
        images: uint8 [B,H,W,3].
        indices: positions in the data set, int64 [B].
    """

    images: np.ndarray
    indices: np.ndarray


class Stream:
    """Batches of one domain, or of several mixed.

    The order depends only on the labels, the number of images, the number of domains and the seed.
    A last batch of one image is joined to the batch before, since a single image has no batch
    statistics.

    Args:
        dataset: the data set.
        domains: its domains in this stream.
        num_images: number of images per domain, the first ones of the data set; -1 takes all.
        batch_size: images per batch.
        seed: of the order.
        order: "shuffled"; "dirichlet", which is correlated in time: there are as many slots as
            classes, and each class's images are divided among them by Dirichlet(concentration), as
            in LAME and NOTE; or "sorted" by class.
        concentration: see order.

    Raises:
        UserError: if the data set has fewer than `num_images` images.
    """

    def __init__(self, dataset: DataSet, domains: Sequence[Domain], *, num_images: int,
                 batch_size: int, seed: int, order: str = "shuffled",
                 concentration: float = 0.1) -> None:
        available = len(dataset.labels)
        if num_images > available:
            raise UserError(f"NUM_IMAGES {num_images}: {dataset.name} has {available} images")
        count = available if num_images < 0 else num_images
        self.dataset = dataset
        self.domains = tuple(domains)
        self.batch_size = batch_size
        positions = np.arange(count * len(domains))
        self.indices, self.domain_indices = positions % count, positions // count
        arranged = _arrange(dataset.labels[self.indices], order, concentration, seed)
        self.indices, self.domain_indices = self.indices[arranged], self.domain_indices[arranged]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        for part in self._parts():
            yield Batch(self.images(part), self.indices[part])

    def images(self, positions: np.ndarray) -> np.ndarray:
        """Images uint8 [n,H,W,3] at positions int [n] of the stream, fetched domain by domain."""
        indices, domain_indices = self.indices[positions], self.domain_indices[positions]
        present = np.unique(domain_indices)
        if len(present) == 1:
            return self.dataset.images(self.domains[present[0]], indices)
        parts = [self.dataset.images(self.domains[index], indices[domain_indices == index])
                 for index in present]
        back = np.argsort(np.argsort(domain_indices, kind="stable"), kind="stable")
        return np.concatenate(parts)[back]

    def _parts(self) -> list[np.ndarray]:
        bounds = list(range(self.batch_size, len(self), self.batch_size))
        if bounds and self.batch_size > 1 and len(self) - bounds[-1] == 1:
            bounds.pop()
        return np.split(np.arange(len(self)), bounds)


def prefetched(items: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """Yield `items` in their order, while a thread fetches the next ones.

    Args:
        ahead: number of items that are fetched beyond the current one.

    Raises:
        whatever fetching an item raises, when the item would be yielded.
    """
    end = object()
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:  # also if the caller stops early
            for future in waiting:
                future.cancel()


def _arrange(labels: np.ndarray, order: str, concentration: float, seed: int) -> np.ndarray:
    """A permutation of the images with `labels`."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    if order == "shuffled":
        return shuffled
    if order == "sorted":
        return shuffled[np.argsort(labels[shuffled], kind="stable")]
    classes = np.unique(labels)
    slots: list[list[np.ndarray]] = [[] for _ in classes]
    for label in classes:
        of_class = shuffled[labels[shuffled] == label]
        shares = generator.dirichlet([concentration] * len(classes))
        bounds = (np.cumsum(shares)[:-1] * len(of_class)).round().astype(int)
        for slot, part in zip(slots, np.split(of_class, bounds)):
            slot.append(part)
    return np.concatenate([slot[index] for slot in slots
                           for index in generator.permutation(len(slot))])


def domains(dataset: str, names: Sequence[str], severities: Sequence[int]) -> list[Domain]:
    """The domains of a sweep, sorted by severity; severity 0 gives the clean one."""
    wanted = []
    for severity in severities:
        if severity == 0:
            wanted.append(Domain(dataset, CLEAN, 0))
        else:
            wanted += [Domain(dataset, name, severity) for name in names]
    return wanted


def schedule(setting: str, wanted: Sequence[Domain]) -> list[tuple[Domain, ...]]:
    """The domains of each stream of a run, in the order of the streams."""
    if setting == "mixed_domains":
        return [tuple(wanted)]
    if setting == "gradual":
        visits = []
        for name in dict.fromkeys(domain.corruption for domain in wanted):
            rising = sorted(domain for domain in wanted if domain.corruption == name)
            visits += [*rising, *reversed(rising[:-1])]
        return [(domain,) for domain in visits]
    return [(domain,) for domain in wanted]
