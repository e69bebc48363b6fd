"""Style: the common style of all pictures. Imports matplotlib when a picture is made, never pyplot.

Pictures are 8 inches wide at 160 dots per inch, so that their 10 point text is legible at the width
of a README.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tta_apm.atomic import atomic_write
from tta_apm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours for the colour-blind, without yellow, which is too pale on white.
COLOURS = {"blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "purple": "#CC79A7",
           "orange": "#E69F00", "sky": "#56B4E9", "black": "#000000"}
GREY = "#767676"  # for references: a teacher, zero
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # distinguish lines without their colours
WIDTH = 8.0  # inches
DOTS_PER_INCH = 160
TEXT_SIZE = 10.0  # points
LEGEND_HANDLE = 0.75  # inches of a legend's entry beside its text
FORMATS = (".png", ".svg")


def figure(rows: int = 1, columns: int = 1, *, height: float = 4.0,
           **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of rows × columns axes, as a list row by row.

    Args:
        height: of the figure, in inches.
        options: passed to matplotlib's Figure.subplots, e.g. sharex, sharey, gridspec_kw.
    """
    from matplotlib.figure import Figure as NewFigure

    picture = NewFigure(figsize=(WIDTH, height), layout="constrained")
    axes = picture.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for one in axes:
        one.set_prop_cycle(color=list(COLOURS.values()), marker=list(MARKERS))
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e0e0e0", linewidth=0.8)
        one.set_axisbelow(True)
    return picture, axes


def wrap(text: str, width: float, size: float = TEXT_SIZE) -> str:
    """Wrap `text` in `size` points to lines of at most `width` inches.

    Lines break between words; a word that is wider than a line is broken.
    """
    return "\n".join(line for part in text.split("\n") for line in _lines(part, width, size))


def _lines(text: str, width: float, size: float) -> Iterator[str]:
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if _inches(longer, size) <= width:
            line = longer
            continue
        if line:
            yield line
        while len(word) > 1 and _inches(word, size) > width:
            end = next((end for end in range(len(word) - 1, 1, -1)
                        if _inches(word[:end], size) <= width), 1)
            yield word[:end]
            word = word[end:]
        line = word
    yield line


def _inches(text: str, size: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    points, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(size=size), ismath=False)
    return float(points) / 72


def title(where: Figure | Axes, text: str, width: float = WIDTH - 0.2) -> None:
    """Write a title at the left above a figure or axes, in lines of at most `width` inches."""
    text = plain(wrap(text, width))
    if hasattr(where, "suptitle"):
        where.suptitle(text, x=0.01, ha="left", fontsize=TEXT_SIZE)
    else:
        where.set_title(text, loc="left", fontsize=TEXT_SIZE)


def legend(picture: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend below all axes, each label once, in at most `columns` columns."""
    handles = {label: handle for one in axes
               for handle, label in zip(*one.get_legend_handles_labels())}
    labels = [wrap(label, WIDTH - 1) for label in handles]
    widest = max((_inches(line, TEXT_SIZE) for label in labels for line in label.split("\n")),
                 default=0.0)
    picture.legend(
        list(handles.values()), labels, loc="outside lower center", frameon=False,
        ncols=max(1, min(columns, int(WIDTH / (widest + LEGEND_HANDLE)))))


def for_images(axes: Axes, title: str = "") -> None:
    """Prepare `axes` for an image: no ticks, no grid, no spines."""
    axes.set_title(title, fontsize=10)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def plain(text: str) -> str:
    """`text` with $ escaped, so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")


def save(picture: Figure, path: Path) -> Path:
    """Write a figure to `path`, a .png or .svg; equal figures give equal files.

    Raises:
        UserError: for another suffix, or if the file cannot be written.
    """
    import matplotlib

    if path.suffix not in FORMATS:
        raise UserError(f"{path}: pictures are written as {' or '.join(FORMATS)}")
    metadata: Mapping[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tta-apm"}):
        picture.savefig(content, format=path.suffix[1:], dpi=DOTS_PER_INCH, metadata=metadata)
    atomic_write(path, content.getvalue())
    return path
