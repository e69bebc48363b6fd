"""Series: the cells of one row with one seed, and the units that they are run in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tta_apm.bench.plan import Cell, carries_state
from tta_apm.config import Row
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import schedule

if TYPE_CHECKING:
    from tta_apm.bench.evaluate import Evaluation


class Series:
    """One row with one seed, over all its streams.

    Args:
        cells: the cells of the row and seed, in the order of the config.
        setting: the config's SETTING, which decides the streams and whether state is carried over.

    Attributes:
        streams: the domains of each stream, also of streams that need not be run.
    """

    def __init__(self, cells: Sequence[Cell], setting: str) -> None:
        self.cells = {cell.domain: cell for cell in cells}
        self.row: Row = cells[0].row
        self.seed = cells[0].seed
        self.streams = schedule(setting, list(self.cells))
        self.carries_state = carries_state(setting, self.row.scope)

    @classmethod
    def of(cls, cells: Sequence[Cell], setting: str) -> list[Series]:
        """The series of a sweep's cells, in order."""
        return [cls(list(group), setting)
                for _, group in groupby(cells, lambda cell: (cell.row, cell.seed))]

    def needed(self, todo: Collection[str]) -> list[int]:
        """The indices of the streams to run for the cells named in `todo`: those that hold such a
        cell and, if state is carried over, all streams before."""
        needed = [index for index, domains in enumerate(self.streams)
                  if any(self.cells[domain].name in todo for domain in domains)]
        return list(range(needed[-1] + 1)) if needed and self.carries_state else needed

    def units(self, todo: Collection[str]) -> list[list[int]]:
        """`needed` in units that several processes can run: a single unit if state is carried over
        or a domain is in several streams, else one unit per stream."""
        needed = self.needed(todo)
        visits = [domain for index in needed for domain in self.streams[index]]
        if self.carries_state or len(set(visits)) < len(visits):
            return [needed] if needed else []
        return [[index] for index in needed]

    def names(self, unit: Sequence[int], todo: Collection[str]) -> tuple[str, ...]:
        """The names of the cells in the streams of a unit that are in `todo`."""
        domains = dict.fromkeys(domain for index in unit for domain in self.streams[index])
        return tuple(self.cells[domain].name for domain in domains
                     if self.cells[domain].name in todo)


class Collector:
    """Joins the evaluations of a domain that several streams visit."""

    def __init__(self, streams: Sequence[Sequence[Domain]]) -> None:
        self.waiting = Counter(domain for stream in streams for domain in stream)
        self.done: dict[Domain, Evaluation] = {}

    def add(self, domain: Domain, evaluation: Evaluation) -> Evaluation | None:
        """Add an evaluation; returns the joined one after the last visit of the domain, else None.
        """
        before = self.done.pop(domain, None)
        self.done[domain] = before.followed_by(evaluation) if before else evaluation
        self.waiting[domain] -= 1
        return None if self.waiting[domain] else self.done.pop(domain)
