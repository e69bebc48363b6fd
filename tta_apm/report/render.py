"""Blocks as text: Markdown, CSV, LaTeX and the terminal's. Imports no torch."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from tta_apm.report.blocks import COST, Block, in_usual_order

MISSING = "–"
HEADS = {
    "gaussian_noise": "gauss", "shot_noise": "shot", "impulse_noise": "impul",
    "defocus_blur": "defoc", "glass_blur": "glass", "motion_blur": "motn", "zoom_blur": "zoom",
    "brightness": "brit", "contrast": "contr", "elastic_transform": "elast", "pixelate": "pixel",
    "jpeg_compression": "jpeg",
}
HEAD_WIDTH = 14  # of a method's name in the terminal

Line = dict[str, Any]  # of a block's frame
Grid = Sequence[Sequence[str]]


def csv_text(blocks: Sequence[Block]) -> str:
    """One line per method, protocol, data set and severity.

    Columns: `method`, the corruptions, `mean`, `clean` if there is one, then the rest. Scores,
    std and differences are in per cent with four decimals; what is missing is empty.
    """
    names = in_usual_order(name for block in blocks for name in block.columns)
    if "clean" not in names and any(block.clean for block in blocks):
        figures = [*names, "mean", "clean"]
    else:
        figures = [*names, "mean"]
    percent = [*figures, *(f"{kind}_{name}" for kind in (
        "std", "teacher", "delta", "delta_low", "delta_high") for name in figures)]
    lines = [line for block in blocks for line in _lines(block)]
    for line in lines:
        for name in percent + ["agreement"]:
            line[name] = round(100 * line.get(name, math.nan), 4)
        for name in COST + ("cosine",):
            line[name] = float(f"{line[name]:.6g}")
        line["metric"] += " %"
    first = ["method", *figures, "std_mean", "metric", "dataset", "severity", "num_images", "seeds",
             "num_missing", "teacher_mean", "delta_mean", "delta_low_mean", "delta_high_mean",
             "agreement", "cosine"]
    rest = [name for name in lines[0] if name not in first + percent + ["protocol"]]
    last = [name for name in percent if name not in first]
    frame = pd.DataFrame(lines, columns=first + rest + last)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def markdown(blocks: Sequence[Block]) -> str:
    """All tables with what a reader must know, aligned so that they read as plain text too."""
    parts = ["# Results"]
    for block in blocks:
        parts += [f"## {_escape_markdown(_title(block))}", _escape_markdown(_introduction(block)),
                  _pipe_table(*_main_grid(block, bold="**{}**", escape=_escape_markdown), text=3)]
        if _with_teacher(block):
            parts += [f"**Against its own teacher**, {_teacher_caption(block)}",
                      _pipe_table(*_teacher_grid(block), text=1),
                      "\n".join(f"- {_escape_markdown(text)}" for text in _verdicts(block))]
        parts += [f"- {_escape_markdown(note)}" for note in block.notes]
    return "\n\n".join(parts) + "\n"


def latex(blocks: Sequence[Block]) -> str:
    """A booktabs tabular for each block, with its notes; needs only the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for block in blocks:
        head, grid = _main_grid(block, bold="\\textbf{{{}}}", escape=_escape_latex, cost=False)
        head = [_escape_latex(text) for text in head]
        body = [" & ".join(line) + r" \\" for line in grid]
        notes = [_introduction(block), *_verdicts(block), *block.notes]
        parts.append("\n".join([
            "{\\footnotesize\\setlength{\\tabcolsep}{3pt}\\noindent",
            f"\\begin{{tabular}}{{rll{'r' * (len(head) - 4)}l}}",
            "\\toprule", " & ".join(head) + r" \\", "\\midrule", *body, "\\bottomrule",
            "\\end{tabular}",
            *(f"\\par {_escape_latex(note)}" for note in notes), "\\par}"]))
    return "\n\n".join(parts) + "\n"


def terminal(blocks: Sequence[Block], width: int) -> str:
    """The tables turned, methods as columns, since 15 corruptions do not fit beside one another.

    Of several severities only their mean is shown: the files have the others.
    """
    datasets = {block.dataset: block for block in blocks}  # the last block of each
    return "\n\n".join(_terminal_block(block, width) for block in datasets.values())


def _lines(block: Block) -> list[Line]:
    return [{str(name): value for name, value in line.items()}
            for line in block.frame.to_dict("records")]


def _title(block: Block) -> str:
    if block.severity == "0":
        return f"{block.dataset}, clean"
    if block.severity.startswith("mean"):
        return f"{block.dataset}, mean over severities {block.severity.removeprefix('mean of ')}"
    return f"{block.dataset}, severity {block.severity}"


def _better(block: Block, of: str = "value") -> str:
    higher = {"value": "higher", "difference": "above 0"}
    lower = {"value": "lower", "difference": "below 0"}
    return f"{(higher if block.metric == 'accuracy' else lower)[of]} is better"


def _introduction(block: Block) -> str:
    """What is shown, and what all rows have in common."""
    lines = _lines(block)
    mean = f"mean is over the {len(block.columns)} corruptions" + ", without clean" * block.clean
    texts = [f"Top-1 {block.metric} in % on {_title(block)}; {_better(block)}, the best in bold.",
             f"{MISSING} is a missing cell; no average is taken over one."]
    if block.columns != ("clean",):
        texts.append(f"{mean}.".capitalize())
    if any(" " in line["seeds"] for line in lines):
        texts.append("± is the standard deviation over seeds.")
    for label, name in (("Images per column", "num_images"), ("Weights", "weights"),
                        ("Prompts", "templates"), ("Resolution", "resolution")):
        values = {line[name] for line in lines}
        if len(values) == 1 and all(values):  # else the row says it
            texts.append(f"{label}: {values.pop()}.")
    for label, name in (("Images", "images_from"), ("Device", "device")):
        values = {value for line in lines for value in line[name].split("; ") if value}
        texts.append(f"{label}: {'; '.join(sorted(values))}.")
    return " ".join(texts)


def _main_grid(block: Block, *, bold: str, escape: Any,
               cost: bool = True) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a table with a row per method and protocol."""
    teacher = bool(_with_teacher(block))
    head = ["#", "method", "backbone", *(HEADS.get(name, name) for name in block.shown)]
    head += ["teacher", "Δ teacher", "agree", "cosine"] * teacher
    head += ["ms/image", "GFLOPs", "MB"] * cost + ["protocol"]
    grid = []
    for number, line in enumerate(_lines(block)):
        cells = [str(number + 1), escape(line["method"]), escape(line["backbone"])]
        for name in block.shown:
            text = escape(_figure(line, name))
            cells.append(bold.format(text) if (number, name) in block.best else text)
        if teacher:
            cells += [escape(text) for text in (
                _percent(line["teacher_mean"]), _delta(line, "mean"), _percent(line["agreement"]),
                _number(line["cosine"], ".3f"))]
        cells += _cost(line) * cost
        grid.append([*cells, escape(line["protocol"])])
    return head, grid


def _figure(line: Line, name: str) -> str:
    std = line[f"std_{name}"]
    return _percent(line[name]) + ("" if math.isnan(std) else f" ± {100 * std:.1f}")


def _percent(fraction: float) -> str:
    return _number(100 * fraction, ".1f")


def _number(value: float, form: str) -> str:
    return MISSING if math.isnan(value) else format(value, form)


def _points(fraction: float) -> str:
    """A difference with its sign, to a hundredth of a point; zero has none."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


def _delta(line: Line, name: str) -> str:
    if math.isnan(line[f"delta_{name}"]):
        return MISSING
    return f"{_points(line[f'delta_{name}'])} {_interval(line, name)}"


def _interval(line: Line, name: str) -> str:
    low, high = line[f"delta_low_{name}"], line[f"delta_high_{name}"]
    return MISSING if math.isnan(low) else f"[{_points(low)}, {_points(high)}]"


def _cost(line: Line) -> list[str]:
    seconds, gflops, megabytes = (line[name] for name in COST)
    return [_number(1000 * seconds, ".3g" if seconds < 1 else ".0f"),
            _number(gflops, ".3g" if gflops < 1000 else ".0f"), _number(megabytes, ".0f")]


def _with_teacher(block: Block) -> list[tuple[int, Line]]:
    """Rows that stand beside a teacher in any column, with their numbers."""
    return [(number, line) for number, line in enumerate(_lines(block), 1)
            if not all(math.isnan(line[f"delta_{name}"]) for name in block.shown)]


def _teacher_caption(block: Block) -> str:
    return ("on the same images with the same prompts: Δ in points "
            f"({_better(block, 'difference')}) with its 95 % interval, a paired bootstrap over "
            "images. Each interval stands for itself: no correction for their number, and seeds "
            "are not resampled.")


def _teacher_grid(block: Block) -> tuple[list[str], list[list[str]]]:
    rows = _with_teacher(block)
    head = ["", *(f"{number} {_escape_markdown(line['method'])}" for number, line in rows)]
    return head, [[_escape_markdown(name), *(_escape_markdown(_delta(line, name))
                                             for _, line in rows)] for name in block.shown]


def _verdicts(block: Block) -> list[str]:
    """One sentence for each row that has a teacher and is whole."""
    return [f"Row {number}, {line['method']}: {_percent(line['mean'])} % {block.metric}, its "
            f"teacher {_percent(line['teacher_mean'])} %, Δ {_delta(line, 'mean')}: "
            f"{_verdict(line, block.metric)}. They agree on {_percent(line['agreement'])} % of the "
            f"images; final cosine {_number(line['cosine'], '.3f')}."
            for number, line in _with_teacher(block) if not math.isnan(line["delta_mean"])]


def _verdict(line: Line, metric: str) -> str:
    low, high = line["delta_low_mean"], line["delta_high_mean"]
    if low <= 0 <= high:
        return "the interval holds 0, no difference is shown"
    better = (low > 0) == (metric == "accuracy")
    return f"{'better' if better else 'worse'} than its teacher, the interval excludes 0"


def _pipe_table(head: Sequence[str], grid: Grid, text: int) -> str:
    """A Markdown table; the first `text` columns and "protocol" align left, the others right."""
    left = [place < text or name == "protocol" for place, name in enumerate(head)]
    widths = [max(3, *(len(line[place]) for line in (head, *grid))) for place in range(len(head))]
    rule = ["-" * width if flush else "-" * (width - 1) + ":"
            for width, flush in zip(widths, left)]
    return "\n".join(f"| {' | '.join(_padded(line, widths, left))} |"
                     for line in (head, rule, *grid))


def _padded(line: Sequence[str], widths: Iterable[int], left: Iterable[bool]) -> list[str]:
    return [text.ljust(width) if flush else text.rjust(width)
            for text, width, flush in zip(line, widths, left)]


def _terminal_block(block: Block, width: int) -> str:
    labels = ["", *block.shown]
    if _with_teacher(block):
        labels += ["", "teacher", "Δ teacher", "95 % interval", "agree %", "cosine"]
    labels += ["", "ms/image", "GFLOPs/image", "peak MB"]
    columns = [_terminal_column(block, number, line) for number, line in enumerate(_lines(block))]
    height = max(len(head) for head, _ in columns)
    stacked = [[""] * (height - len(head)) + head + body for head, body in columns]
    label_column = ["method", *[""] * (height - 1), *labels]
    parts = [f"{_title(block)}: {block.metric} in %, {_better(block)}, * is best"]
    parts += ["\n".join(_side_by_side(label_column, group))
              for group in _groups(stacked, width - max(map(len, label_column)))]
    rows = [f"Row {number}, {line['method']}: {line['protocol']}"
            for number, line in enumerate(_lines(block), 1)]
    notes = [*rows, *_verdicts(block), *block.notes]
    parts.append("\n".join(textwrap.fill(note, width, subsequent_indent="  ") for note in notes))
    return "\n\n".join(parts)


def _terminal_column(block: Block, number: int, line: Line) -> tuple[list[str], list[str]]:
    """Head and body of one method's column, in the order of _terminal_block's labels."""
    head = [str(number + 1), *textwrap.wrap(line["method"], HEAD_WIDTH),
            *textwrap.wrap(line["backbone"], HEAD_WIDTH)]
    body = ["", *(_figure(line, name) + ("*" if (number, name) in block.best else " ")
                  for name in block.shown)]
    if _with_teacher(block):
        delta = line["delta_mean"]
        body += ["", _percent(line["teacher_mean"]),
                 MISSING if math.isnan(delta) else _points(delta), _interval(line, "mean"),
                 _percent(line["agreement"]), _number(line["cosine"], ".3f")]
    body += ["", *_cost(line)]
    return head, body


def _groups(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Columns in as many groups as it takes for each to fit `width`."""
    groups: list[list[list[str]]] = [[]]
    left = width
    for column in columns:
        needed = 2 + max(map(len, column))
        if needed > left and groups[-1]:
            groups.append([])
            left = width
        groups[-1].append(column)
        left -= needed
    return groups


def _side_by_side(labels: Sequence[str], columns: Grid) -> list[str]:
    widths = [max(map(len, column)) for column in (labels, *columns)]
    left = [True] + [False] * len(columns)
    return ["  ".join(_padded(line, widths, left)).rstrip() for line in zip(labels, *columns)]


def _escape_markdown(text: str) -> str:
    """`text` so that Markdown shows it as it is; an underscore within a word already is."""
    text = re.sub(r"([\\`*\[\]<>|#~]|\b_|_\b)", r"\\\1", " ".join(text.split()))
    return text


_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "±": r"$\pm$",
    "·": r"$\cdot$", "Δ": r"$\Delta$",
}


def _escape_latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])([-+])(?=\d)", r"$\1$", text)  # signs of numbers
