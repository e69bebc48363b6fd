"""Published: rows of the tables in APM's paper, shown below ours. Imports no torch.

published/*.csv hold the figures as printed. Averages are recomputed from the cells, since many
printed averages are not the mean of their row.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tta_apm.report import phrases
from tta_apm.report.external import ExternalRow, protocol_of, with_rows
from tta_apm.report.protocol import DomainKey
from tta_apm.report.table import CLEAN_KEY, Table

FOLDER = Path(__file__).parent / "published"
PAPER = "Modi and Rawat, NeurIPS 2024 (arXiv 2410.20535)"
AVERAGE = "average_as_printed"
# The column of clean images in the table on CIFAR-10-C.
ORIGINAL = "original"


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper: its file in FOLDER, number and metric, and the teacher's row of each
    row of APM."""

    file: str
    number: int
    metric: str
    teachers: Mapping[str, str]


# Tables on clean images: one column for each data set, by our names.
NATURAL_SHIFTS = PublishedTable("imagenet_natural_shifts", 1, "accuracy", {
    "APM (ViT-B/16)": "Ensemble (80 prompts)", "APM (ViT-L/14)": "CLIP ViT-L/14",
    "APM (ViT-H/14)": "OpenCLIP ViT-H/14"})
CROSS_DATASET = PublishedTable("cross_dataset", 3, "accuracy", {"APM": "Ensemble (80 prompts)"})
# Tables on one data set at one severity: one column for each corruption.
_IMAGENET_C = {severity: PublishedTable(f"imagenet_c_level{severity}", number, "accuracy",
                                        {"APM": "OpenCLIP ViT-L/14"})
               for severity, number in ((1, 11), (2, 12), (3, 13), (4, 14), (5, 2))}
# By our names here, no fields of the data sets: that a table of this paper has one is the paper's.
CORRUPTED = {
    "cifar10_c": {
        5: PublishedTable("cifar10_c_level5", 10, "error", {"APM": "CLIP ViT-L/14"})},
    "imagenet_c": _IMAGENET_C, "imagenet_c_50k": _IMAGENET_C,
}


def add_published(tables: Sequence[Table]) -> list[Table]:
    """The tables with the rows of the paper's table below ours, if it has one.

    Each row of APM is followed by that of its teacher.
    """
    return [with_rows(table, _rows(table)) for table in tables]


def _rows(table: Table) -> list[ExternalRow]:
    if table.severities == (0,):
        return [row for published in (NATURAL_SHIFTS, CROSS_DATASET)
                for row in _clean_rows(published, table.dataset)]
    known = CORRUPTED.get(table.dataset, {})
    if not all(severity in known for severity in table.severities):
        return []
    return _corrupted_rows(table.dataset, {
        severity: known[severity] for severity in table.severities})


def _clean_rows(table: PublishedTable, dataset: str) -> list[ExternalRow]:
    return [_row(method, dataset, {CLEAN_KEY: _error(cells[dataset], table)}, [table], "")
            for method, cells in read_table(table).items() if dataset in cells]


def _corrupted_rows(dataset: str, tables: Mapping[int, PublishedTable]
                    ) -> list[ExternalRow]:
    """The rows of the methods that are in all of the tables; `tables` are by severity."""
    contents = {severity: read_table(table) for severity, table in tables.items()}
    first, *others = contents.values()
    rows = []
    for method in first:
        if all(method in other for other in others):
            errors = {_domain(column, severity): _error(cell, tables[severity])
                      for severity, content in contents.items()
                      for column, cell in content[method].items() if column != AVERAGE}
            printed = "; ".join(_average(content[method]) for content in contents.values())
            rows.append(_row(method, dataset, errors, list(tables.values()), printed))
    return rows


def _row(method: str, dataset: str, errors: Mapping[DomainKey, float],
         tables: Sequence[PublishedTable], average: str) -> ExternalRow:
    numbers = f"Table{phrases.plural(tables)} {', '.join(str(table.number) for table in tables)}"
    source = f"{numbers} of {PAPER}"
    if average:
        source += f"; its average is {average}"
    teacher = tables[0].teachers.get(method)
    if teacher:
        source += f"; its teacher is the next row, {teacher}"
    return ExternalRow(protocol_of(method, "", dataset),
                       {(domain, None): error for domain, error in errors.items()},
                       summary=numbers, source=source, mark="published")


def _average(cells: Mapping[str, float]) -> str:
    """The printed average, and the mean of the row's cells."""
    parts = {column: value for column, value in cells.items() if column != AVERAGE}
    corruptions = [value for column, value in parts.items() if column != ORIGINAL]
    text = (f"{cells[AVERAGE]:.1f} as printed, "
            f"{sum(corruptions) / len(corruptions):.2f} by its cells")
    if len(corruptions) < len(parts):
        text += f" ({sum(parts.values()) / len(parts):.2f} with {ORIGINAL!r})"
    return text


def _domain(column: str, severity: int) -> DomainKey:
    return CLEAN_KEY if column == ORIGINAL else (column, severity)


def _error(cell: float, table: PublishedTable) -> float:
    return (cell if table.metric == "error" else 100 - cell) / 100


def read_table(table: PublishedTable) -> dict[str, dict[str, float]]:
    """The cells of each row, in per cent as printed, each APM row before that of its teacher."""
    with (FOLDER / f"{table.file}.csv").open(newline="", encoding="utf-8") as file:
        rows = {line.pop("method"): {column: float(cell) for column, cell in line.items()}
                for line in csv.DictReader(file)}
    teachers = set(table.teachers.values())
    order = [name for method in rows if method not in teachers
             for name in (method, table.teachers.get(method)) if name]
    return {name: rows[name] for name in order}
