"""Ablations: our rows beside the rows of the paper's ablation tables. Imports no torch.

The paper's figures are on other images with other teachers. Compare the direction in which a
change moves the accuracy, not the values.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_apm.errors import UserError, choose, nearest
from tta_apm.report import phrases
from tta_apm.report.build import build_tables
from tta_apm.report.formats.markdown import escape, pipe_table
from tta_apm.report.published import FOLDER, PAPER
from tta_apm.report.results import Rows
from tta_apm.report.table import Table

# One file per table: accuracy in %, as printed; std_* is over the seeds 0, 7 and 42.
PUBLISHED = FOLDER / "ablations"


@dataclass(frozen=True)
class Paper:
    """The table of the paper, and the row of it to show beside each of ours.

    Args:
        table: name of a file in PUBLISHED, e.g. "table_8".
        rows: the paper's row for each entry of `methods`, "" for none.
        methods: the texts of our rows.
    """

    table: str
    rows: Sequence[str]
    methods: Sequence[str]


def paper_of(saved: Mapping[str, Any]) -> Paper | None:
    """The PAPER section of a saved config; None if it names no table."""
    paper, methods = saved.get("PAPER"), saved.get("METHODS")
    if not isinstance(paper, Mapping) or not paper.get("TABLE") or not isinstance(methods, list):
        return None
    return Paper(str(paper["TABLE"]), [str(row) for row in paper.get("ROWS") or ()],
                 [" ".join(str(entry).split()) for entry in methods])


def paper_rows(paper: Paper) -> list[dict[str, str]]:
    """The paper's row for each of ours, as printed values by column; {} for a row without one.

    Raises:
        UserError: if the table or a row is unknown, or `rows` and `methods` differ in length.
    """
    known = sorted(file.stem for file in PUBLISHED.glob("*.csv"))
    choose("PAPER.TABLE", "", paper.table, known)
    if len(paper.rows) != len(paper.methods):
        raise UserError(f"PAPER.ROWS names {len(paper.rows)} rows of {paper.table}, METHODS has "
                        f"{len(paper.methods)}: give one for each, '' for none, or PAPER.TABLE ''")
    with (PUBLISHED / f"{paper.table}.csv").open(encoding="utf-8", newline="") as file:
        published = {line.pop("row"): line for line in csv.DictReader(file)}
    for row in paper.rows:
        if row and row not in published:
            raise UserError(f"PAPER.ROWS: {paper.table} has no row {row!r}: "
                            f"{nearest(row, published)}")
    return [published.get(row, {}) for row in paper.rows]


def ablation(rows: Rows, paper: Paper) -> str:
    """Markdown tables of our rows beside the paper's, for each data set and severity."""
    theirs = dict(zip(paper.methods, zip(paper.rows, paper_rows(paper))))
    return "\n\n".join(_beside(table, paper.table.replace("_", " "), theirs)
                       for table in build_tables(rows, metric="accuracy"))


def _beside(table: Table, name: str, theirs: Mapping[str, tuple[str, Mapping[str, str]]]) -> str:
    datasets = [name for name in dict.fromkeys(
        name for _, figures in theirs.values() for name in figures) if not name.startswith("std_")]
    head = ["ours", "accuracy", "its teacher", "Δ", "95 % interval", "agree %", "cosine", name,
            *(f"there, {dataset}" for dataset in datasets)]
    grid = []
    for line in table.lines:
        row, figures = theirs.get(line.heading, ("", {}))
        grid.append([escape(line.heading), phrases.value(line.mean),
                     *phrases.against_teacher(line.mean), row,
                     *(_printed(figures, dataset) for dataset in datasets)])
    parts = [f"{phrases.title(table)}, and {name} of {PAPER}: top-1 accuracy in %; theirs is on "
             "other images with another teacher", pipe_table(head, grid, text=1),
             "\n".join(f"- {escape(note)}" for note in (*phrases.conditions(table),
                                                        *table.notes))]
    return "\n\n".join(parts)


def _printed(figures: Mapping[str, str], dataset: str) -> str:
    std = figures.get(f"std_{dataset}")
    return figures.get(dataset, phrases.MISSING) + (f" ± {std}" if std else "")
