"""Tables: table.md, table.csv and table.tex of a folder of results. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tta_apm.report import imported, render
from tta_apm.report.blocks import make_blocks
from tta_apm.report.given import add_given
from tta_apm.report.published import add_published
from tta_apm.report.results import CELLS, DomainKey, group_rows, load_results
from tta_apm.writing import write_aside


def write_tables(folder: Path, *, metric: str = "error",
                 wanted: Sequence[DomainKey] | None = None, methods: Sequence[str] = (),
                 published: bool = False) -> str:
    """Compute the tables of `folder` anew from its cells and write them there.

    Args:
        folder: of the results, with the records below cells/ and imported logs in imported/.
        metric: "error" or "accuracy".
        wanted: corruption and severity of the columns that a row must have to be whole; by default
            those that any row has.
        methods: the rows that come first, in this order, as METHODS of the config names them.
        published: put the rows of the paper's tables below ours, where it has such a table.

    Returns:
        The tables for the terminal.

    Raises:
        UserError: if there are no results, a file of them is not whole, or the folder cannot be
            written to.
    """
    given = imported.rows(imported.load(folder))
    results = load_results(folder) if not given or (folder / CELLS).is_dir() else []
    blocks = make_blocks(group_rows(results, methods), metric=metric, wanted=wanted)
    blocks = add_given(blocks, given, metric)
    if published:
        blocks = add_published(blocks, metric)
    texts = {"table.md": render.markdown(blocks), "table.csv": render.csv_text(blocks),
             "table.tex": render.latex(blocks)}
    for name, text in texts.items():
        write_aside(folder / name, text.encode())
    return render.terminal(blocks, shutil.get_terminal_size((100, 24)).columns)
