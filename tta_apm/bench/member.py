"""Member: a row on its way through the streams of a unit, beside others."""

from __future__ import annotations

from collections.abc import Sequence

from tta_apm.bench.run import Run
from tta_apm.bench.series import Collector, Series


class Member:
    """A row with a seed that goes through the streams of a unit.

    Args:
        unit: the indices of the streams.

    Attributes:
        needed: the indices of the streams that are yet to run.
    """

    def __init__(self, series: Series, run: Run, unit: Sequence[int]) -> None:
        self.series = series
        self.run = run
        self.needed = list(unit)
        self.collector = Collector([series.streams[index] for index in self.needed])
