"""Blocks as text: Markdown, CSV, LaTeX and the terminal's. Imports no torch."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from tta_apm.report import phrases
from tta_apm.report.table import COST, Block, in_usual_order

HEADS = {
    "gaussian_noise": "gauss", "shot_noise": "shot", "impulse_noise": "impul",
    "defocus_blur": "defoc", "glass_blur": "glass", "motion_blur": "motn", "zoom_blur": "zoom",
    "brightness": "brit", "contrast": "contr", "elastic_transform": "elast", "pixelate": "pixel",
    "jpeg_compression": "jpeg",
}
HEAD_WIDTH = 14  # of a method's name in the terminal

# What makes a cell a formula; the last four in spreadsheets of East Asian languages.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")

Grid = Sequence[Sequence[str]]


def csv_text(blocks: Sequence[Block]) -> str:
    """One line per method, protocol, data set and severity.

    Columns: `method`, the corruptions, `mean`, `clean` if there is one, then the rest. Scores,
    std and differences are in per cent with four decimals; what is missing is empty.
    """
    shown = {name for block in blocks for name in block.shown}
    figures = [*in_usual_order(shown - {"mean", "clean"}), "mean", *(shown & {"clean"})]
    percent = [*figures, *(f"{kind}_{name}" for kind in (
        "std", "teacher", "delta", "delta_low", "delta_high", "agreement") for name in figures)]
    cosines = [f"cosine_{name}" for name in figures]
    lines = [line for block in blocks for _, line in phrases.lines(block)]
    for line in lines:
        for name in percent + ["agreement"]:
            line[name] = round(100 * line.get(name, math.nan), 4)
        for name in (*COST, "cosine", *cosines):
            line[name] = float(f"{line.get(name, math.nan):.6g}")
        line["metric"] += " %"
    first = ["method", *figures, "std_mean", "metric", "dataset", "severity", "num_images", "seeds",
             "num_missing", "teacher_mean", "delta_mean", "delta_low_mean", "delta_high_mean",
             "agreement", "cosine"]
    rest = [name for name in lines[0] if name not in first + percent + cosines + ["protocol"]]
    last = [name for name in percent + cosines if name not in first]
    return csv_of(pd.DataFrame(lines, columns=first + rest + last))


def csv_of(frame: pd.DataFrame) -> str:
    """A frame as CSV in which no text is taken for a formula by a spreadsheet."""
    inert = frame.rename(columns=_inert).map(_inert)
    return str(inert.to_csv(index=False, lineterminator="\n"))


def _inert(cell: Any) -> Any:
    """A text that a spreadsheet would run gets an apostrophe before it; numbers stay numbers."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA) or NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def markdown(blocks: Sequence[Block]) -> str:
    """All tables with what a reader must know, aligned so that they read as plain text too."""
    parts = ["# Results"]
    for block in blocks:
        grid = _grid(block, bold="**{}**", escape=escape_markdown)
        parts += [f"## {escape_markdown(phrases.title(block))}",
                  escape_markdown(phrases.introduction(block)), pipe_table(*grid, text=3)]
        if phrases.lines_with_teacher(block):
            parts += [escape_markdown(phrases.teacher_caption(block)),
                      pipe_table(*_teacher_grid(block), text=1)]
        notes = [*phrases.verdicts(block), *block.notes]
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    return "\n\n".join(filter(None, parts)) + "\n"


def latex(blocks: Sequence[Block]) -> str:
    """A booktabs tabular for each block, with its notes; needs only the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for block in blocks:
        head, grid = _grid(block, bold="\\textbf{{{}}}", escape=_escape_latex, cost=False)
        notes = [f"{phrases.title(block)}. {phrases.introduction(block)}"]
        if phrases.lines_with_teacher(block):
            notes += [phrases.teacher_caption(block), *phrases.verdicts(block)]
        notes += block.notes
        parts.append("\n".join([
            "{\\footnotesize\\setlength{\\tabcolsep}{3pt}\\noindent",
            f"\\begin{{tabular}}{{rll{'r' * (len(head) - 4)}l}}", "\\toprule",
            " & ".join(map(_escape_latex, head)) + r" \\", "\\midrule",
            *(" & ".join(cells) + r" \\" for cells in grid), "\\bottomrule", "\\end{tabular}",
            *(f"\\par {_escape_latex(note)}" for note in notes), "\\par}"]))
    return "\n\n".join(parts) + "\n"


def terminal(blocks: Sequence[Block], width: int) -> str:
    """The tables turned, methods as columns, since 15 corruptions do not fit beside one another.

    Of several severities only their mean is shown: the files have the others.
    """
    of_datasets = {block.dataset: block for block in blocks}  # the last block of each
    texts = [_turned(block, width) for block in of_datasets.values()]
    if len(of_datasets) < len(blocks):
        texts.append("Each severity alone: see table.md.")
    return "\n\n".join(texts)


def _grid(block: Block, *, bold: str, escape: Callable[[str], str],
          cost: bool = True) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table with a line per method and protocol."""
    with_teacher = {number for number, _ in phrases.lines_with_teacher(block)}
    head = ["#", "method", "backbone", *(HEADS.get(name, name) for name in block.shown)]
    if with_teacher:
        head += ["teacher", f"Δ teacher ({phrases.good_sign(block)})", "agree", "cosine"]
    head += ["ms/image", "GFLOPs", "MB"] * cost + ["protocol"]
    grid = []
    for number, line in phrases.lines(block):
        cells = [str(number), escape(line["method"]), escape(line["backbone"])]
        for name in block.shown:
            text = escape(phrases.figure(line, name))
            cells.append(bold.format(text) if (number - 1, name) in block.best else text)
        if number in with_teacher:
            teacher, _, _, *likeness = phrases.teacher_figures(line)
            cells += map(escape, [teacher, phrases.delta(line, "mean"), *likeness])
        elif with_teacher:
            cells += [""] * 4
        grid.append([*cells, *phrases.cost(line) * cost, escape(line["protocol"])])
    return head, grid


def _teacher_grid(block: Block) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a Markdown table with a line per corruption, a column per method."""
    rows = phrases.lines_with_teacher(block)
    head = ["", *(f"{number} {escape_markdown(line['method'])}" for number, line in rows)]
    return head, [[escape_markdown(name), *(phrases.delta(line, name) for _, line in rows)]
                  for name in block.shown]


def pipe_table(head: Sequence[str], grid: Grid, text: int) -> str:
    """A Markdown table; the first `text` columns and "protocol" align left, the others right."""
    left = [place < text or name == "protocol" for place, name in enumerate(head)]
    widths = [max(3, *map(len, column)) for column in zip(head, *grid)]
    rule = ["-" * width if flush else "-" * (width - 1) + ":"
            for width, flush in zip(widths, left)]
    return "\n".join(f"| {' | '.join(_padded(cells, widths, left))} |"
                     for cells in (head, rule, *grid))


def _padded(cells: Sequence[str], widths: Iterable[int], left: Iterable[bool]) -> list[str]:
    return [text.ljust(width) if flush else text.rjust(width)
            for text, width, flush in zip(cells, widths, left)]


def _turned(block: Block, width: int) -> str:
    """A block for the terminal: methods as columns, then their protocols and all notes."""
    with_teacher = {number for number, _ in phrases.lines_with_teacher(block)}
    labels = [*block.shown, ""]
    if with_teacher:
        labels += ["teacher", f"Δ ({phrases.good_sign(block)})", "95 % interval", "agree %",
                   "cosine", ""]
    labels += ["ms/image", "GFLOPs/image", "peak MB"]
    lines = phrases.lines(block)
    heads = [[str(number), *textwrap.wrap(line["method"], HEAD_WIDTH)] for number, line in lines]
    height = 1 + max(map(len, heads))
    columns = []
    for (number, line), head in zip(lines, heads):
        column = head + [""] * (height - len(head))
        column += [phrases.figure(line, name) + " *"[(number - 1, name) in block.best]
                   for name in block.shown] + [""]
        if number in with_teacher:
            column += [*phrases.teacher_figures(line), ""]
        elif with_teacher:
            column += [""] * 6
        columns.append(column + phrases.cost(line))
    protocols = [f"{number} {line['method']}: "
                 + " · ".join(filter(None, [line["backbone"], line["protocol"]]))
                 for number, line in lines]
    heading = f"{phrases.title(block)}: {phrases.measure(block)}, * is best"
    paragraphs = [textwrap.fill(heading, width)]
    paragraphs += _side_by_side([""] * height + labels, columns, width)
    paragraphs += ["\n".join(textwrap.fill(note, width, subsequent_indent="  ") for note in notes)
                   for notes in (phrases.conditions(block), protocols, phrases.verdicts(block),
                                 block.notes) if notes]
    return "\n\n".join(paragraphs)


def _side_by_side(labels: Sequence[str], columns: Grid, width: int) -> list[str]:
    """Columns beside their labels, in as many tables as it takes for each to fit `width`."""
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
        tables.append("\n".join("  ".join(_padded(cells, widths, left)).rstrip()
                                for cells in zip(*group)))
    return tables


def escape_markdown(text: str) -> str:
    """`text` so that Markdown shows it as it is; an underscore within a word already is."""
    return re.sub(r"([\\`*<>|~$&]|\](?=[(\[])|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "±": r"$\pm$",
    "·": r"$\cdot$", "Δ": r"$\Delta$",
}


def _escape_latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])([-+])(?=\d)", r"$\1$", text)  # signs of numbers
