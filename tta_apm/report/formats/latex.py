"""LaTeX: a booktabs tabular for each table. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tta_apm.report import phrases
from tta_apm.report.formats.grid import make_grid
from tta_apm.report.table import Table

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "±": r"$\pm$",
    "·": r"$\cdot$", "Δ": r"$\Delta$",
}


# A table that is wider than the line is scaled down; the first lines say how to keep its size.
HEAD = "\n".join([
    r"% needs \usepackage{booktabs,graphicx}",
    r"% \newcommand{\ttafit}[1]{#1} before this file leaves wide tables as they are.",
    r"\providecommand{\ttafit}[1]{%",
    r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}"])


def text(tables: Sequence[Table]) -> str:
    """Each table, and below it its notes and the protocols of its rows by number.

    The text needs the packages booktabs and graphicx.
    """
    parts = [HEAD]
    for table in tables:
        head, grid = make_grid(table, bold="\\textbf{{{}}}", escape=escape, cost=False)
        notes = [f"{phrases.title(table)}. {phrases.introduction(table)}"]
        if table.lines_with_teacher:
            notes += [phrases.teacher_caption(table), *phrases.verdicts(table)]
        notes += table.notes
        shown = [escape(note) for note in notes]
        shown += [f"{cells[0]}: {_breakable(cells[-1])}" for cells in grid]
        parts.append("\n".join([
            "{\\footnotesize\\setlength{\\tabcolsep}{3pt}\\noindent\\ttafit{%",
            f"\\begin{{tabular}}{{rll{'r' * (len(head) - 4)}}}", "\\toprule",
            " & ".join(map(escape, head[:-1])) + r" \\", "\\midrule",
            *(" & ".join(cells[:-1]) + r" \\" for cells in grid), "\\bottomrule",
            "\\end{tabular}}", "\\raggedright", *(f"\\par {note}" for note in shown), "\\par}"]))
    return "\n\n".join(parts) + "\n"


def _breakable(text: str) -> str:
    """Escaped text in which long words, e.g. paths, may break after / _ - and dots."""
    return re.sub(r"(/|\\_|-|\.(?!\d))(?=\w{4})", r"\1\\allowbreak{}", text)


def escape(text: str) -> str:
    """Escape the characters that are special in LaTeX."""
    text = "".join(_ESCAPES.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])([-+])(?=\d)", r"$\1$", text)  # signs of numbers
