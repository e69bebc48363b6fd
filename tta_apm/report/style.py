"""Style: one look for all pictures. Imports matplotlib only when a picture is made, no pyplot.

A picture is 8 inches wide and 160 dots an inch, so that its 10 point text is read at the width of
a README.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tta_apm.atomic import atomic_write
from tta_apm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; yellow is left out, too pale on white.
COLOURS = {"blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "purple": "#CC79A7",
           "orange": "#E69F00", "sky": "#56B4E9", "black": "#000000"}
GREY = "#767676"  # of references: a teacher, zero
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # a second sign beside the colour
WIDTH = 8.0
FORMATS = (".png", ".svg")


def figure(rows: int = 1, columns: int = 1, *, height: float = 4.0,
           **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of rows × columns axes, as a list row by row.

    Args:
        height: of the figure, in inches.
        options: of matplotlib's Figure.subplots, such as sharex, sharey, gridspec_kw.
    """
    from matplotlib.figure import Figure as NewFigure

    made = NewFigure(figsize=(WIDTH, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for one in axes:
        one.set_prop_cycle(color=list(COLOURS.values()), marker=list(MARKERS))
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e0e0e0", linewidth=0.8)
        one.set_axisbelow(True)
    return made, axes


def for_images(axes: Axes, title: str = "") -> None:
    """Make `axes` a frame for an image: no ticks, no grid, no spines."""
    axes.set_title(title, fontsize=10)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def plain(text: str) -> str:
    """`text` as matplotlib shows it without reading what stands between two $ as a formula."""
    return text.replace("$", r"\$")


def save(made: Figure, path: Path) -> Path:
    """Write a figure to `path`, a .png or .svg; equal figures give equal files.

    Raises:
        UserError: for another ending, or a folder that cannot be written to.
    """
    import matplotlib

    if path.suffix not in FORMATS:
        raise UserError(f"{path}: pictures are written as {' or '.join(FORMATS)}")
    metadata: Mapping[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tta-apm"}):
        made.savefig(content, format=path.suffix[1:], dpi=160, metadata=metadata)
    atomic_write(path, content.getvalue())
    return path
