"""Series: the cells of one row with one seed, and what has come of them so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tta_apm.bench.plan import Cell, carries_on
from tta_apm.config import Row
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import schedule

if TYPE_CHECKING:
    from tta_apm.bench.evaluate import Evaluation


class Series:
    """One row with one seed over its streams.

    Args:
        cells: of the row and the seed, in the order of the config.
        setting: of the config: which domains make a stream, and whether state is carried over.

    Attributes:
        streams: the domains of each stream of the setting, needed here or not.
    """

    def __init__(self, cells: Sequence[Cell], setting: str) -> None:
        self.cells = {cell.domain: cell for cell in cells}
        self.row: Row = cells[0].row
        self.seed = cells[0].seed
        self.streams = schedule(setting, list(self.cells))
        self.carries_on = carries_on(setting, self.row.scope)

    @classmethod
    def of(cls, cells: Sequence[Cell], setting: str) -> list[Series]:
        """All series of a sweep's cells, in their order."""
        return [cls(list(group), setting)
                for _, group in groupby(cells, lambda cell: (cell.row, cell.seed))]

    def needed(self, todo: Collection[str]) -> list[int]:
        """The indices of the streams to go through for the cells that `todo` names: all up to the
        last such cell where state is carried over, else those with such a cell."""
        needed = [index for index, domains in enumerate(self.streams)
                  if any(self.cells[domain].name in todo for domain in domains)]
        return list(range(needed[-1] + 1)) if needed and self.carries_on else needed

    def units(self, todo: Collection[str]) -> list[list[int]]:
        """`needed` in parts that may be run apart from one another, e.g. by several processes: one
        part where state is carried over, or where a domain comes in several streams."""
        needed = self.needed(todo)
        visits = [domain for index in needed for domain in self.streams[index]]
        if self.carries_on or len(set(visits)) < len(visits):
            return [needed] if needed else []
        return [[index] for index in needed]

    def names(self, unit: Sequence[int], todo: Collection[str]) -> tuple[str, ...]:
        """The names of the wanted cells in the streams of a unit."""
        domains = dict.fromkeys(domain for index in unit for domain in self.streams[index])
        return tuple(self.cells[domain].name for domain in domains
                     if self.cells[domain].name in todo)


class Collector:
    """Puts together what comes of a domain, which a setting may visit several times."""

    def __init__(self, streams: Sequence[Sequence[Domain]]) -> None:
        self.waiting = Counter(domain for stream in streams for domain in stream)
        self.done: dict[Domain, Evaluation] = {}

    def add(self, domain: Domain, evaluation: Evaluation) -> Evaluation | None:
        """The whole of a domain once its last visit is here."""
        before = self.done.pop(domain, None)
        self.done[domain] = before.followed_by(evaluation) if before else evaluation
        self.waiting[domain] -= 1
        return None if self.waiting[domain] else self.done.pop(domain)
