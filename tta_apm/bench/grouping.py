"""Grouping: which rows of a sweep run side by side, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from tta_apm.bench.series import Series
from tta_apm.bench.together import Room

# Rows that run side by side.
Group = list[Series]


class Grouping:
    """Divides rows into groups that run side by side.

    Args:
        seeds: all seeds, in order.
        room: decides how many rows fit.
        held_mb: the memory of each row by its text, as far as it is known.

    Attributes:
        slowness: how often a row has left faster ones; rows of a group are equally slow.
        alone: rows that must run without others.
    """

    def __init__(self, seeds: Sequence[int], room: Room, held_mb: Mapping[str, float]) -> None:
        self.seeds = seeds
        self.room = room
        self.held_mb = held_mb
        self.slowness: Counter[Series] = Counter()
        self.alone: set[Series] = set()

    def groups(self, every: Sequence[Series], todo: Collection[str]) -> Iterator[Group]:
        """The groups of the rows that the cells in `todo` need, by seed and then by slowness."""
        left = [series for series in every if series.needed(todo)]
        for seed, slowness in sorted({(series.seed, self.slowness[series]) for series in left},
                                     key=lambda key: (self.seeds.index(key[0]), key[1])):
            group: Group = []
            for series in left:
                if (series.seed, self.slowness[series]) != (seed, slowness):
                    continue
                if series in self.alone:
                    yield [series]
                    continue
                if group and not self.fits([*group, series]):
                    yield group
                    group = []
                group.append(series)
            if group:
                yield group

    def fits(self, group: Group) -> bool:
        """Whether rows fit side by side; a row that was never built counts as 0 MiB."""
        return self.room.fits([self.held_mb.get(series.row.text, 0.0) for series in group])

    def must_leave(self, group: Group, slowness: int) -> list[Series]:
        """The rows of a group that must leave it: those that are slower now or must run alone."""
        return [series for series in group if self.slowness[series] > slowness
                or series in self.alone and len(group) > 1]
