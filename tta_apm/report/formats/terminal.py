"""Terminal: tables with methods as columns, since 15 corruptions do not fit side by side.

Imports no torch.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from tta_apm.report import phrases
from tta_apm.report.formats.grid import Grid, padded
from tta_apm.report.table import Table, TableLine

HEAD_WIDTH = 14  # characters of a line of a method's name, unless a word is longer


def text(tables: Sequence[Table]) -> str:
    """The tables, within the width of the terminal; of several severities only the mean."""
    width = shutil.get_terminal_size((100, 24)).columns
    of_datasets = {table.dataset: table for table in tables}  # the last table of each
    texts = [_turned(table, width) for table in of_datasets.values()]
    if len(of_datasets) < len(tables):
        texts.append("Each severity alone: see table.md.")
    return "\n\n".join(texts)


def _turned(table: Table, width: int) -> str:
    """A table with methods as columns, followed by their protocols and all notes."""
    labels = [*table.shown, ""]
    if table.lines_with_teacher:
        labels += ["teacher", f"Δ ({phrases.good_sign(table)})", "95 % interval", "agree %",
                   "cosine", ""]
    labels += ["ms/image", "GFLOPs/image", "peak MB"]
    room = width - max(map(len, labels)) - 2
    heads = [[str(line.number), *_wrapped(line.heading, room)] for line in table.lines]
    height = 1 + max(map(len, heads), default=0)
    columns = [head + [""] * (height - len(head)) + _column(table, line)
               for head, line in zip(heads, table.lines)]
    protocols = [f"{line.number} {line.heading}: "
                 + " · ".join(filter(None, [line.protocol.backbone, line.summary]))
                 for line in table.lines]
    heading = f"{phrases.title(table)}: {phrases.measure(table)}, * is best"
    paragraphs = [textwrap.fill(heading, width)]
    paragraphs += _side_by_side([""] * height + labels, columns, width)
    paragraphs += ["\n".join(textwrap.fill(note, width, subsequent_indent="  ") for note in notes)
                   for notes in (phrases.conditions(table), protocols, phrases.verdicts(table),
                                 table.notes) if notes]
    return "\n\n".join(paragraphs)


def _wrapped(heading: str, room: int) -> list[str]:
    """A heading in lines of at most `room` characters, broken between words if possible."""
    longest = max(map(len, heading.split()), default=0)
    return textwrap.wrap(heading, min(max(HEAD_WIDTH, longest), max(room, HEAD_WIDTH)),
                         break_on_hyphens=False)


def _column(table: Table, line: TableLine) -> list[str]:
    """The texts of a line's column, without its heading."""
    values = [phrases.value(line.figures[name])
              + ("*" if (line.number, name) in table.best else " ") for name in table.shown]
    teacher = [""] * 6 if table.lines_with_teacher else []
    if line.has_teacher:
        teacher = [*phrases.against_teacher(line.mean), ""]
    return [*values, "", *teacher, *phrases.cost(line.cost)]


def _side_by_side(labels: Sequence[str], columns: Grid, width: int) -> list[str]:
    """Columns beside their labels, in as many tables as are needed to stay within `width`."""
    groups: list[list[Sequence[str]]] = [[labels]]
    used = [max(map(len, labels))]
    for column in columns:
        needed = 2 + max(map(len, column))
        if used[-1] + needed > width and len(groups[-1]) > 1:
            groups.append([labels])
            used.append(max(map(len, labels)))
        groups[-1].append(column)
        used[-1] += needed
    tables = []
    for group in groups:
        widths = [max(map(len, column)) for column in group]
        left = [column is labels for column in group]
        tables.append("\n".join("  ".join(padded(cells, widths, left)).rstrip()
                                for cells in zip(*group)))
    return tables
