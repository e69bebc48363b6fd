"""Grid: a table as lines of texts, for formats with one line per row. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tta_apm.report import phrases
from tta_apm.report.table import Table, TableLine

Grid = Sequence[Sequence[str]]

HEADS = {
    "gaussian_noise": "gauss", "shot_noise": "shot", "impulse_noise": "impul",
    "defocus_blur": "defoc", "glass_blur": "glass", "motion_blur": "motn", "zoom_blur": "zoom",
    "brightness": "brit", "contrast": "contr", "elastic_transform": "elast", "pixelate": "pixel",
    "jpeg_compression": "jpeg",
}


def make_grid(table: Table, *, bold: str, escape: Callable[[str], str], cost: bool = True
              ) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table as texts, one line per row.

    Args:
        bold: bold text in the format, with {} for the text.
        escape: escapes the format's special characters in a text.
        cost: whether to include time, GFLOPs and memory.
    """
    head = ["#", "method", "backbone", *(HEADS.get(name, name) for name in table.shown)]
    if table.lines_with_teacher:
        head += ["teacher", f"Δ teacher ({phrases.good_sign(table)})", "agree", "cosine"]
    head += ["ms/image", "GFLOPs", "MB"] if cost else []
    return [*head, "protocol"], [
        [str(line.number), escape(line.heading), escape(line.protocol.backbone),
         *_figures(table, line, bold, escape), *map(escape, _teacher(table, line)),
         *(phrases.cost(line.cost) if cost else []), escape(line.summary)]
        for line in table.lines]


def _figures(table: Table, line: TableLine, bold: str, escape: Callable[[str], str]
             ) -> Iterable[str]:
    for name in table.shown:
        text = escape(phrases.value(line.figures[name]))
        yield bold.format(text) if (line.number, name) in table.best else text


def _teacher(table: Table, line: TableLine) -> list[str]:
    """The entries of the teacher's columns; empty texts for a line without one, and no entries if
    no line has one."""
    if not line.has_teacher:
        return [""] * 4 if table.lines_with_teacher else []
    teacher, _, _, *similarity = phrases.against_teacher(line.mean)
    return [teacher, phrases.delta(line.mean), *similarity]


def padded(cells: Sequence[str], widths: Iterable[int], left: Iterable[bool]) -> list[str]:
    """Texts padded to their widths, aligned to the left or to the right."""
    return [text.ljust(width) if flush else text.rjust(width)
            for text, width, flush in zip(cells, widths, left)]
