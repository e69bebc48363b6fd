"""Stream: the batches that a method meets, the same for every method; and the settings.

Settings say which domains make a stream and when a method is reset:
- reset_each_domain: a stream per domain, reset before each;
- continual: the same streams, reset before the first only;
- gradual: continual, where each corruption's severities rise and fall again (1 2 3 4 5 4 3 2 1);
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
    """Images of one batch. It carries no labels: they are looked up when the method is done.

    Args:
        images: uint8 [B,H,W,3].
        indices: positions in the data set, int64 [B].
    """

    images: np.ndarray
    indices: np.ndarray


class Stream:
    """Batches of one domain, or of several mixed.

    The order depends on the labels, the number of images, the domains' number and the seed only.
    A last batch that would hold one image joins the one before: a single image has no batch
    statistics.

    Args:
        order: "shuffled"; "dirichlet", correlated in time: each class's images are spread over
            as many slots as there are classes by shares from Dirichlet(concentration), as in
            LAME and NOTE; or "sorted" by class.
        num_images: per domain, the first of the data set; -1 takes all.

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
    """`items` in their order, the next ones fetched by a thread while those before are in use.

    Args:
        ahead: how many are fetched or being fetched beyond the one in use.

    Raises:
        whatever fetching an item raises, when its turn comes.
    """
    end = object()
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:  # also where the caller stops early
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
    """The domains of a sweep, severity by severity; severity 0 gives the clean one."""
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
