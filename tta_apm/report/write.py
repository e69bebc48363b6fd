"""Write: table.md, table.csv and table.tex of a results folder. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tta_apm.atomic import atomic_write
from tta_apm.report import ablations, imported
from tta_apm.report.build import build_tables
from tta_apm.report.external import add_external
from tta_apm.report.formats import csv, latex, markdown, terminal
from tta_apm.report.published import add_published
from tta_apm.report.results import CELLS, Rows, group_rows, load_rows
from tta_apm.report.table import Table
from tta_apm.report.wanted import saved_config, wanted


@dataclass(frozen=True)
class Tables:
    """The tables of a folder as texts.

    Args:
        files: the content of each file, by name.
        terminal: the text to print, within the width of the terminal.
    """

    files: Mapping[str, str]
    terminal: str

    def write(self, folder: Path) -> None:
        """Write the files. UserError if the folder cannot be written to."""
        for name, text in self.files.items():
            atomic_write(folder / name, text.encode())


def make_tables(folder: Path, *, metric: str = "", published: bool = False) -> Tables:
    """Make the tables of `folder` from its cells, without writing them.

    The folder's config.yaml says which cells a complete row has, the order of the rows, and which
    ablation of the paper to show beside them.

    Args:
        folder: the results folder, with records below cells/ and imported logs in imported/.
        metric: "error" or "accuracy"; "" takes that of the run.
        published: show the rows of the paper's table below ours, if there is one.

    Raises:
        UserError: if there are no results, or a file of them is incomplete.
    """
    saved = saved_config(folder)
    metric = metric or str(saved.get("METRIC", "error"))
    rows, tables = with_imported(folder, metric)
    if published or saved.get("PUBLISHED") is True:
        tables = add_published(tables)
    files = {"table.md": markdown.text(tables), "table.csv": csv.text(tables),
             "table.tex": latex.text(tables)}
    texts = [terminal.text(tables)]
    paper = ablations.paper_of(saved)
    if paper is not None:
        texts.append(ablations.ablation(rows, paper))
        files["ablation.md"] = texts[-1] + "\n"
    return Tables(files, "\n\n".join(texts))


def with_imported(folder: Path, metric: str = "error") -> tuple[Rows, list[Table]]:
    """The folder's own rows, and its tables with the imported rows below them."""
    external = imported.rows(imported.load(folder))
    rows = _rows(folder, required=not external)
    return rows, add_external(build_tables(rows, metric=metric), external, metric)


def _rows(folder: Path, required: bool) -> Rows:
    """The folder's own rows; UserError if there are none and they are `required`."""
    if required or (folder / CELLS).is_dir():
        return load_rows(folder)
    return group_rows([], wanted(folder))
