"""Ablations: our rows with those of the paper's ablation tables beside them. Imports no torch.

The paper's figures are of other images and other teachers: they stand beside ours to show which
way a change moves the accuracy, not to be reached.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tta_apm.errors import UserError, nearest
from tta_apm.report import render, wording
from tta_apm.report.blocks import Block, make_blocks
from tta_apm.report.published import FOLDER, PAPER
from tta_apm.report.results import group_rows, load_results
from tta_apm.writing import write_aside

# A file per table: accuracy in %, as printed; std_* over the seeds 0, 7 and 42.
PUBLISHED = FOLDER / "ablations"


def paper_rows(table: str, rows: Sequence[str], methods: Sequence[str]) -> list[dict[str, str]]:
    """The paper's row for each of ours, {} where there is none.

    Args:
        table: name of a file in PUBLISHED, such as "table_8".
        rows: what the paper's row is called there, "" for none, one for each of `methods`.
        methods: METHODS of the config.

    Raises:
        UserError: for an unknown table or row, or another number of rows.
    """
    known = sorted(file.stem for file in PUBLISHED.glob("*.csv"))
    if table not in known:
        raise UserError(f"PAPER.TABLE: unknown {table!r}: {nearest(table, known)}")
    if len(rows) != len(methods):
        raise UserError(f"PAPER.ROWS names {len(rows)} rows of {table}, METHODS has "
                        f"{len(methods)}: give one for each, '' for none, or PAPER.TABLE ''")
    with (PUBLISHED / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        published = {line.pop("row"): line for line in csv.DictReader(file)}
    for row in rows:
        if row and row not in published:
            raise UserError(f"PAPER.ROWS: {table} has no row {row!r}: {nearest(row, published)}")
    return [published.get(row, {}) for row in rows]


def write_ablation(folder: Path, *, table: str, rows: Sequence[str],
                   methods: Sequence[str]) -> str:
    """Put the paper's rows beside ours: a Markdown table, also written to folder/ablation.md.

    Args:
        folder: of the results.
        table, rows, methods: see paper_rows.
    """
    methods = [" ".join(entry.split()) for entry in methods]  # as records name their rows
    theirs = dict(zip(methods, zip(rows, paper_rows(table, rows, methods))))
    blocks = make_blocks(group_rows(load_results(folder), methods), metric="accuracy")
    text = "\n\n".join(_beside(block, table, theirs) for block in blocks)
    write_aside(folder / "ablation.md", (text + "\n").encode())
    return text


def _beside(block: Block, table: str,
            theirs: Mapping[str, tuple[str, Mapping[str, str]]]) -> str:
    datasets = [name for name in dict.fromkeys(
        name for _, figures in theirs.values() for name in figures) if not name.startswith("std_")]
    name = table.replace("_", " ")
    head = ["ours", "accuracy", "its teacher", "Δ", "95 % interval", "agree %", "cosine", name,
            *(f"there, {dataset}" for dataset in datasets)]
    grid = []
    for _, line in wording.lines(block):
        row, figures = theirs.get(line["method"], ("", {}))
        grid.append([line["method"], wording.figure(line, "mean"), *wording.teacher_figures(line),
                     row, *(_printed(figures, dataset) for dataset in datasets)])
    return (f"{wording.title(block)}, and {name} of {PAPER}: top-1 accuracy in %; theirs is on "
            f"other images with another teacher\n\n{render.pipe_table(head, grid, text=1)}")


def _printed(figures: Mapping[str, str], dataset: str) -> str:
    std = figures.get(f"std_{dataset}")
    return figures.get(dataset, wording.MISSING) + (f" ± {std}" if std else "")
