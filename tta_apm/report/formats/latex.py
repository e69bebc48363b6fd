"""LaTeX: a booktabs tabular for each table. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tta_apm.report import phrases
from tta_apm.report.formats.grid import make_grid
from tta_apm.report.table import Table

_SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "±": r"$\pm$",
    "·": r"$\cdot$", "Δ": r"$\Delta$",
}


def text(tables: Sequence[Table]) -> str:
    """Each table with its notes below it; needs only the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        head, grid = make_grid(table, bold="\\textbf{{{}}}", escape=escape, cost=False)
        notes = [f"{phrases.title(table)}. {phrases.introduction(table)}"]
        if table.lines_with_teacher:
            notes += [phrases.teacher_caption(table), *phrases.verdicts(table)]
        notes += table.notes
        parts.append("\n".join([
            "{\\footnotesize\\setlength{\\tabcolsep}{3pt}\\noindent",
            f"\\begin{{tabular}}{{rll{'r' * (len(head) - 4)}l}}", "\\toprule",
            " & ".join(map(escape, head)) + r" \\", "\\midrule",
            *(" & ".join(cells) + r" \\" for cells in grid), "\\bottomrule", "\\end{tabular}",
            *(f"\\par {escape(note)}" for note in notes), "\\par}"]))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """`text` so that LaTeX prints it as it is."""
    text = "".join(_SIGNS.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])([-+])(?=\d)", r"$\1$", text)  # signs of numbers
