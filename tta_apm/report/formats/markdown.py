"""Markdown: all tables with their notes. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tta_apm.report import phrases
from tta_apm.report.formats.grid import Grid, make_grid, padded
from tta_apm.report.table import Table


def text(tables: Sequence[Table]) -> str:
    """One section per table; columns are aligned, so that it is also readable as plain text."""
    parts = ["# Results"]
    for table in tables:
        head, lines = make_grid(table, bold="**{}**", escape=escape)
        parts += [f"## {escape(phrases.title(table))}", escape(phrases.introduction(table)),
                  pipe_table(head, lines, text=3)]
        if table.lines_with_teacher:
            parts += [escape(phrases.teacher_caption(table)), _against_teachers(table)]
        notes = [*phrases.verdicts(table), *table.notes]
        parts.append("\n".join(f"- {escape(note)}" for note in notes))
    return "\n\n".join(filter(None, parts)) + "\n"


def _against_teachers(table: Table) -> str:
    """The differences to the teachers: one line per corruption, one column per method."""
    lines = table.lines_with_teacher
    return pipe_table(
        ["", *(f"{line.number} {escape(line.heading)}" for line in lines)],
        [[escape(name), *(phrases.delta(line.figures[name]) for line in lines)]
         for name in table.shown], text=1)


def pipe_table(head: Sequence[str], grid: Grid, text: int) -> str:
    """A Markdown table; the first `text` columns and "protocol" align left, the others right."""
    left = [index < text or name == "protocol" for index, name in enumerate(head)]
    widths = [max(3, *map(len, column)) for column in zip(head, *grid)]
    rule = ["-" * width if flush else "-" * (width - 1) + ":"
            for width, flush in zip(widths, left)]
    return "\n".join(f"| {' | '.join(padded(cells, widths, left))} |"
                     for cells in (head, rule, *grid))


def escape(text: str) -> str:
    """Escape the characters that are special in Markdown, except underscores within a word."""
    return re.sub(r"([\\`*<>|~$&]|\](?=[(\[])|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
