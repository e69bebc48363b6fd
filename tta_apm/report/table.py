"""Table: the rows on a data set with their figures, for all formats. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.report.protocol import DomainKey, Protocol
from tta_apm.report.results import TableRow

CLEAN_KEY: DomainKey = ("clean", 0)
# The domains of each column: one, or the same corruption at several severities.
Columns = dict[str, tuple[DomainKey, ...]]


@dataclass(frozen=True)
class Figure:
    """One entry of a table, in fractions; NaN if a cell is missing or the field does not apply.

    Args:
        value: error or accuracy.
        std: over seeds; NaN for one seed.
        teacher: the teacher's error or accuracy on the same images; NaN without a teacher.
        delta: `value` − `teacher`.
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
        """Whether the interval of the difference excludes 0."""
        return self.low > 0 or self.high < 0

    def is_better(self, metric: str) -> bool:
        """Whether the interval of the difference excludes 0 and lies on the better side."""
        return self.low > 0 if metric == "accuracy" else self.high < 0


@dataclass(frozen=True)
class ClearColumns:
    """The numbers of columns whose interval of the difference to the teacher excludes 0.

    Args:
        better, worse: those in which the row is better or worse than its teacher.
        compared: all columns that have an interval.
    """

    better: int
    worse: int
    compared: int


@dataclass(frozen=True)
class Cost:
    """The cost of a row over all its cells; NaN if a cell is missing or lacks the field.

    Args:
        seconds_per_image: over the cells during which no other process used the device or the
            cores; over all cells if there is no such cell.
        gflops_per_image: the mean over cells.
        peak_memory_mb: the maximum over cells, in MiB.
        share_updated: the share of images that an update was made on.
        forwards_per_image, backwards_per_image: passes through the backbone or a copy of it; each
            view of an image counts.
        resets: by the method itself, the mean over cells.
        crowded: whether other processes used the device or the cores during all cells.
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
    """Where the cells of a row come from: the sorted values of all cells."""

    device: tuple[str, ...] = ()
    images_from: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    commit: tuple[str, ...] = ()
    fingerprint: str = ""  # a hash of the fingerprints of the cells


@dataclass(frozen=True)
class TableLine:
    """One line of a table.

    Args:
        number: in its table, from 1.
        heading: the method as it is printed.
        protocol: how it was run.
        summary: the protocol in short, as it is printed.
        seeds: None is a seed that is not stated.
        figures: one for each of the table's columns, for "mean" and, if there is one, "clean".
        num_missing: the number of missing cells.
        row: its results; None if it was measured elsewhere.
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
        """Whether the method sees all images of a domain before it predicts any."""
        return self.protocol.scope == "domain"

    @property
    def has_teacher(self) -> bool:
        """Whether it is compared with a teacher in any column."""
        return not all(math.isnan(figure.delta) for figure in self.figures.values())


@dataclass(frozen=True)
class Table:
    """A data set at one severity, or the mean over its severities.

    Args:
        dataset: its name.
        severities: one, or several over which each figure is the mean; (0,) if all images are
            clean.
        metric: "error" or "accuracy".
        columns: those of the mean, in the usual order.
        clean: whether there is a column "clean", which the mean leaves out.
        lines: one per row.
        best: (line number, column) of the best values as printed, among online rows on the same
            images.
        notes: sentences below the table, e.g. on missing cells.
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
        """The names of the columns as printed: clean if there is one, the corruptions, mean."""
        if list(self.columns) == ["clean"]:
            return ("clean",)
        return (*(["clean"] if self.clean else []), *self.columns, "mean")

    @property
    def figures(self) -> dict[str, Columns]:
        """The name of each figure of a line, with the columns that it is the mean of."""
        clean: dict[str, Columns] = {"clean": {"clean": (CLEAN_KEY,)}} if self.clean else {}
        return clean | {name: {name: domains} for name, domains in self.columns.items()} | {
            "mean": self.columns}

    @property
    def domains(self) -> list[DomainKey]:
        """The domains of all columns, each once."""
        return [*([CLEAN_KEY] if self.clean else []), *domains_of(self.columns)]

    def clear_columns(self, line: TableLine) -> ClearColumns:
        """The clear columns of `line`, among those of the mean."""
        figures = [line.figures[name] for name in self.columns]
        better = sum(figure.is_better(self.metric) for figure in figures)
        return ClearColumns(better, sum(figure.is_clear for figure in figures) - better,
                            sum(not math.isnan(figure.delta) for figure in figures))

    @property
    def lines_with_teacher(self) -> list[TableLine]:
        return [line for line in self.lines if line.has_teacher]


def in_usual_order(names: Iterable[str]) -> list[str]:
    """Distinct corruptions in the usual order of the field, others after them alphabetically."""
    return sorted(set(names), key=lambda name: (
        CORRUPTIONS.index(name) if name in CORRUPTIONS else len(CORRUPTIONS), name))


def empty_tables(dataset: str, domains: set[DomainKey], metric: str) -> list[Table]:
    """The tables of a data set with these domains, without lines."""
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
