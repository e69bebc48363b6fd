"""Plot parts: labels, titles and error bars that several plots share. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tta_apm.report import phrases, style
from tta_apm.report.style import plain
from tta_apm.report.table import Table, TableLine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With more columns than this, only their mean is drawn as a line.
MAX_LINES = 5


def name_columns(axes: Axes, table: Table) -> None:
    """Label the x axis with the columns, rotated if there are many."""
    turned: dict[str, Any] = dict(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xticks(range(len(table.shown)), [readable(name) for name in table.shown],
                    **(turned if len(table.shown) > MAX_LINES else {}))


def bars(line: TableLine, names: Sequence[str]) -> tuple[list[float], list[float]]:
    """The lengths of a line's error bars below and above its figures, one for each name."""
    below, above = zip(*(bar(line, name) for name in names))
    return list(below), list(above)


def bar(line: TableLine, name: str) -> tuple[float, float]:
    """The lengths of a figure's error bar below and above it, in per cent.

    The bar is the interval of the difference to the teacher, also around a score, since the
    teacher's score counts as fixed. Without a teacher it is the std over seeds.
    """
    figure = line.figures[name]
    if math.isnan(figure.delta):
        return 100 * or_zero(figure.std), 100 * or_zero(figure.std)
    # matplotlib refuses negative lengths, which rounding can give.
    return (max(100 * figure.delta - 100 * figure.low, 0.0),
            max(100 * figure.high - 100 * figure.delta, 0.0))


def labels_of(lines: Iterable[TableLine]) -> list[str]:
    """The method of each row; with the order if orders differ, and with the row's number if two
    labels would be equal."""
    lines = list(lines)
    several = len({line.protocol.order for line in lines}) > 1
    labels = [f"{line.heading}, {line.protocol.order}" if several else line.heading
              for line in lines]
    if len(set(labels)) < len(labels):
        labels = [f"{line.number} {label}" for line, label in zip(lines, labels)]
    return [plain(style.wrap(label, style.WIDTH / 3)) for label in labels]


def has_spread(lines: Iterable[TableLine]) -> bool:
    """Whether a line has a std over seeds."""
    return any(len(line.seeds) > 1 for line in lines)


def title_of(table: Table, what: str) -> str:
    """The title of a plot that shows `what`, with the numbers and the origin of the images."""
    images = ", ".join(sorted({str(line.protocol.num_images) for line in table.lines}))
    seeds = max((line.seeds for line in table.lines), key=len)
    gaps = " · incomplete" if any(line.num_missing for line in table.lines) else ""
    named = {origin for line in table.lines for origin in line.origin.images_from}
    origins = phrases.origins(sorted(named))
    return (f"{phrases.title(table)}: {what} · {images} images · {len(seeds)} "
            f"seed{phrases.plural(seeds)}{gaps}\nimages: {origins}")


def readable(name: str) -> str:
    """A name with spaces for underscores, for matplotlib."""
    return plain(name.replace("_", " "))


def or_zero(value: float) -> float:
    """`value`, or 0 for NaN."""
    return 0.0 if math.isnan(value) else value
