"""External: rows that were measured elsewhere, shown below ours. Imports no torch.

Without predictions they get no interval and no teacher. They are never marked best, since they may
be on other images. Each says where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tta_apm.report import phrases
from tta_apm.report.protocol import DomainKey, Protocol
from tta_apm.report.table import Columns, Figure, Origin, Table, TableLine, empty_tables

NOT_STATED = "not stated"
# The fields of a protocol that a source does not state.
_UNKNOWN: dict[str, Any] = dict(
    hyper_parameters=None, weights=NOT_STATED, templates="", resolution=0, preprocessing="",
    num_images="", scope="", survives="", setting="", order="", batch_size=None)


def protocol_of(method: str, backbone: str, dataset: str, **fields: Any) -> Protocol:
    """A protocol whose other fields are not stated; `fields` are fields of Protocol."""
    return Protocol(row=method, method=method, backbone=backbone, dataset=dataset,
                    **{**_UNKNOWN, **fields})


@dataclass(frozen=True)
class ExternalRow:
    """The figures of one method under one protocol.

    Args:
        protocol: as far as its source states it; its `row` names the method.
        errors: error as a fraction, by domain and seed; the seed is None if it is not stated.
        summary: how they were measured, in short, as far as the source states it.
        source: where they come from, for a note below the table.
        mark: "imported" or "published", printed after the method.
        host: whose method it is and where it ran, printed there, too.
        images_from: the images that the figures are on.
        wanted: domains that the row should have beside those of `errors`.
    """

    protocol: Protocol
    errors: Mapping[tuple[DomainKey, int | None], float]
    summary: str
    source: str
    mark: str
    host: str = ""
    images_from: str = NOT_STATED
    wanted: frozenset[DomainKey] = frozenset()

    @property
    def seeds(self) -> list[int | None]:
        return sorted({seed for _, seed in self.errors}, key=lambda seed: (seed is None, seed))

    @property
    def domains(self) -> set[DomainKey]:
        return {domain for domain, _ in self.errors} | self.wanted

    @property
    def heading(self) -> str:
        return f"{self.protocol.row} ({', '.join(filter(None, [self.mark, self.host]))})"

    def missing(self, domains: Iterable[DomainKey]) -> int:
        """The number of cells, over `domains` and the row's seeds, that have no error."""
        return sum((domain, seed) not in self.errors for domain in domains for seed in self.seeds)


def add_external(tables: Sequence[Table], rows: Sequence[ExternalRow], metric: str) -> list[Table]:
    """The tables with external rows below ours, and tables for domains of external rows only."""
    tables = list(tables)
    for dataset in sorted({row.protocol.dataset for row in rows}):
        ours = [table for table in tables if table.dataset == dataset]
        shown = {domain for table in ours for domain in table.domains}
        alone = [row for row in rows
                 if row.protocol.dataset == dataset and not row.domains & shown]
        if alone:  # before ours: the last table of a data set is the one that is printed
            index = tables.index(ours[0]) if ours else len(tables)
            domains = {domain for row in alone for domain in row.domains}
            tables[index:index] = empty_tables(dataset, domains, metric)
    return [with_rows(table, rows) for table in tables]


def with_rows(table: Table, rows: Sequence[ExternalRow]) -> Table:
    """A table with the external rows that have one of its domains, below its own rows."""
    fitting = [row for row in rows if row.protocol.dataset == table.dataset
               and row.domains.intersection(table.domains)]
    lines, notes = [], []
    for number, row in enumerate(fitting, len(table.lines) + 1):
        lines.append(_line(number, row, table))
        notes.append(f"Row {number} is {row.mark}: {row.source}. It has no predictions, so it gets "
                     "no interval and is never marked best.")
        if lines[-1].num_missing:
            notes.append(phrases.missing(lines[-1], table))
    return replace(table, lines=(*table.lines, *lines), notes=(*table.notes, *notes))


def _line(number: int, row: ExternalRow, table: Table) -> TableLine:
    return TableLine(
        number, row.heading, row.protocol, row.summary, tuple(row.seeds),
        {name: _figure(row, columns, table.metric) for name, columns in table.figures.items()},
        num_missing=row.missing(table.domains), origin=Origin(images_from=(row.images_from,)))


def _figure(row: ExternalRow, columns: Columns, metric: str) -> Figure:
    """The mean over columns and its std over seeds; NaN if an error is missing."""
    per_seed = [np.mean([np.mean([row.errors.get((domain, seed), math.nan) for domain in column])
                         for column in columns.values()]) for seed in row.seeds]
    error = float(np.mean(per_seed))
    return Figure(1 - error if metric == "accuracy" else error,
                  float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else math.nan)
