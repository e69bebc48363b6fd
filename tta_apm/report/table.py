"""Table: rows on a data set with their figures, as all formats print them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.report.results import DomainKey, Protocol, TableRow

CLEAN_KEY: DomainKey = ("clean", 0)
# Each column's domains: one, or the same corruption at several severities.
Columns = dict[str, tuple[DomainKey, ...]]


@dataclass(frozen=True)
class Figure:
    """One entry of a table, fractions. NaN: a missing cell, or a mean that would include one.

    Args:
        value: error or accuracy.
        std: over seeds; NaN for one seed.
        teacher: the teacher's error or accuracy on the same images; NaN without a teacher.
        delta: `value` less `teacher`.
        low, high: the 95 % interval of `delta`.
        agreement: share of images on which method and teacher agree.
        cosine: mean final cosine of student and teacher.
    """

    value: float = math.nan
    std: float = math.nan
    teacher: float = math.nan
    delta: float = math.nan
    low: float = math.nan
    high: float = math.nan
    agreement: float = math.nan
    cosine: float = math.nan

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference is clear of 0."""
        return self.low > 0 or self.high < 0

    def is_better(self, metric: str) -> bool:
        """Whether the interval of the difference is clear of 0 on the better side of it."""
        return self.low > 0 if metric == "accuracy" else self.high < 0


@dataclass(frozen=True)
class ClearColumns:
    """In how many columns a row's interval of the difference to its teacher is clear of 0.

    Args:
        better, worse: than its teacher.
        compared: columns that have an interval.
    """

    better: int
    worse: int
    compared: int


@dataclass(frozen=True)
class Cost:
    """What a row took, over all of its cells; NaN where one is missing or does not tell.

    Args:
        seconds_per_image: of the cells that ran while no other process used the device or the
            cores; of all cells if there is none such.
        peak_memory_mb: the highest of any cell.
        share_updated: of the images, those of which an update was made.
        forwards_per_image, backwards_per_image: images, views one by one, that went through the
            backbone or a copy, and that a gradient went back for.
        resets: by the method itself, the mean of its cells.
        crowded: whether all cells ran beside other processes.
    """

    seconds_per_image: float = math.nan
    gflops_per_image: float = math.nan
    peak_memory_mb: float = math.nan
    share_updated: float = math.nan
    forwards_per_image: float = math.nan
    backwards_per_image: float = math.nan
    resets: float = math.nan
    crowded: bool = False


@dataclass(frozen=True)
class Origin:
    """Where the cells of a row come from: every value that occurs, sorted."""

    device: tuple[str, ...] = ()
    images_from: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    commit: tuple[str, ...] = ()
    fingerprint: str = ""  # of the row, from those of its cells


@dataclass(frozen=True)
class TableLine:
    """One line of a table.

    Args:
        number: in its table, from 1.
        heading: the method as it is printed.
        protocol: how it was run.
        summary: the protocol in short, as it is printed.
        seeds: None is one that is not told.
        figures: by the table's columns, with "mean" and, where there is one, "clean".
        num_missing: cells of the table that are not there.
        row: the results behind it; None where they were measured elsewhere.
    """

    number: int
    heading: str
    protocol: Protocol
    summary: str
    seeds: tuple[int | None, ...]
    figures: Mapping[str, Figure]
    num_missing: int
    cost: Cost = Cost()
    origin: Origin = Origin()
    row: TableRow | None = field(default=None, repr=False, compare=False)

    @property
    def mean(self) -> Figure:
        return self.figures["mean"]

    @property
    def is_offline(self) -> bool:
        """Whether it has seen all images of a domain before it predicted any."""
        return self.protocol.scope == "domain"

    @property
    def has_teacher(self) -> bool:
        """Whether it stands beside a teacher in any column."""
        return not all(math.isnan(figure.delta) for figure in self.figures.values())


@dataclass(frozen=True)
class Table:
    """A data set at one severity, or the mean over its severities.

    Args:
        dataset: its name.
        severities: one, or those that each figure is the mean over; (0,) where all images are
            clean.
        metric: "error" or "accuracy".
        columns: those that the mean is over, in the usual order.
        clean: whether there is a column "clean" beside them, which the mean leaves out.
        lines: one per row.
        best: (number of a line, column) of the best values of online rows, compared as printed and
            on the same images only.
        notes: what a reader must know beside the numbers.
    """

    dataset: str
    severities: tuple[int, ...]
    metric: str
    columns: Columns
    clean: bool
    lines: tuple[TableLine, ...] = ()
    best: frozenset[tuple[int, str]] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns that are printed: clean if there is one, the corruptions, mean."""
        if list(self.columns) == ["clean"]:
            return ("clean",)
        return (*(["clean"] if self.clean else []), *self.columns, "mean")

    @property
    def figures(self) -> dict[str, Columns]:
        """Every figure of a line, with the columns that it is the mean of."""
        clean: dict[str, Columns] = {"clean": {"clean": (CLEAN_KEY,)}} if self.clean else {}
        return clean | {name: {name: domains} for name, domains in self.columns.items()} | {
            "mean": self.columns}

    @property
    def domains(self) -> list[DomainKey]:
        """Those of all columns, each once."""
        return [*([CLEAN_KEY] if self.clean else []), *domains_of(self.columns)]

    def clear_columns(self, line: TableLine) -> ClearColumns:
        """Those of `line`, over the columns that the mean is over."""
        figures = [line.figures[name] for name in self.columns]
        better = sum(figure.is_better(self.metric) for figure in figures)
        return ClearColumns(better, sum(figure.is_clear for figure in figures) - better,
                            sum(not math.isnan(figure.delta) for figure in figures))

    @property
    def lines_with_teacher(self) -> list[TableLine]:
        return [line for line in self.lines if line.has_teacher]


def in_usual_order(names: Iterable[str]) -> list[str]:
    """Corruptions as the field orders them, others after them by alphabet."""
    return sorted(set(names), key=lambda name: (
        CORRUPTIONS.index(name) if name in CORRUPTIONS else len(CORRUPTIONS), name))


def empty_tables(dataset: str, domains: set[DomainKey], metric: str) -> list[Table]:
    """The tables that a data set's domains make, without lines."""
    severities = sorted({severity for _, severity in domains} - {0})
    if not severities:
        return [Table(dataset, (0,), metric, {"clean": (CLEAN_KEY,)}, clean=False)]
    names = in_usual_order(name for name, severity in domains if severity)
    groups: list[tuple[int, ...]] = [(severity,) for severity in severities]
    if len(severities) > 1:
        groups.append(tuple(severities))
    tables = []
    for group in groups:
        columns = {name: tuple((name, severity) for severity in group
                               if (name, severity) in domains) for name in names}
        tables.append(Table(dataset, group, metric, {
            name: column for name, column in columns.items() if column}, CLEAN_KEY in domains))
    return tables


def domains_of(columns: Columns) -> list[DomainKey]:
    return [domain for column in columns.values() for domain in column]
