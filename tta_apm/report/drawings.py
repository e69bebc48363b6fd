"""Drawings: what can be drawn of a block, each function one kind. Imports no torch.

A function gives no figure where the block has nothing to draw of that kind.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tta_apm.report import phrases
from tta_apm.report.phrases import Line
from tta_apm.report.style import COLOURS, GREY, MARKERS, figure, plain
from tta_apm.report.table import Block

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More columns than these are drawn as their mean only where each would be a line.
MAX_LINES = 5
TITLE_WIDTH = 105  # characters
# Of a row's protocol: what rows of one series or one comparison have in common.
COMMON = ("backbone", "weights", "templates", "resolution", "preprocessing", "num_images",
          "setting", "batch_size")


def methods(block: Block) -> list[Figure]:
    """Every method under every corruption: a map of figures, darker is worse."""
    lines = phrases.lines(block)
    values = [[100 * line[name] for name in block.shown] for _, line in lines]
    made, (axes,) = figure(height=1.6 + 0.3 * len(lines))
    shades = "Blues" if block.metric == "error" else "Blues_r"
    image = axes.imshow(values, cmap=shades, aspect="auto", vmin=0, vmax=100)
    for row, of_line in enumerate(values):
        for column, value in enumerate(of_line):
            red, green, blue, _ = image.to_rgba(value)
            # A gap has no colour: it shows the paper.
            pale = math.isnan(value) or 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
            axes.text(column, row, phrases.number_text(value, ".0f"), ha="center", va="center",
                      fontsize=9, color="black" if pale else "white")
    axes.set_xticks(range(len(block.shown)), [_plain(name) for name in block.shown], rotation=40,
                    ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(lines)), _labels(lines))
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_title(block, phrases.measure(block)), loc="left", fontsize=10)
    return [made]


def teacher(block: Block) -> list[Figure]:
    """Each row with a teacher against it: the difference per corruption, with its interval."""
    lines = phrases.lines_with_teacher(block)
    if not lines:
        return []
    made, (axes,) = figure(height=1.8 + 0.13 * len(block.shown) * (1 + len(lines)))
    labels = _labels(lines)
    for place, (_, line) in enumerate(lines):
        heights = [row + (place - (len(lines) - 1) / 2) * 0.7 / len(lines)
                   for row in range(len(block.shown))]
        deltas, reach = _intervals(line, block.shown, "delta")
        axes.errorbar(deltas, heights, xerr=reach, linestyle="", capsize=2.5, markersize=5,
                      marker=MARKERS[place % len(MARKERS)], label=labels[place],
                      color=list(COLOURS.values())[place % len(COLOURS)])
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    if block.shown[-1] == "mean":
        axes.axhline(len(block.shown) - 1.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(block.shown)), [_plain(name) for name in block.shown])
    axes.set_ylim(len(block.shown) - 0.5, -0.5)  # a place for gaps, too
    axes.set_xlabel(f"{block.metric} less the teacher's, in points ({phrases.good_sign(block)}), "
                    "with 95 % interval")
    axes.set_title(_title(block, "against the teacher on the same images"), loc="left", fontsize=10)
    _legend(made, [axes], columns=3)
    return [made]


def steps(block: Block) -> list[Figure]:
    """Score, difference to the teacher, agreement and cosine against the number of steps."""
    names = block.shown if len(block.shown) <= MAX_LINES else tuple(
        name for name in block.shown if name in ("clean", "mean"))
    return [_draw_steps(block, series, names) for series in _series(block)]


def audit(block: Block) -> list[Figure]:
    """What survives between images × the order they come in, beside the teacher, per domain."""
    groups = _comparisons(block)
    if not groups:
        return []
    made, axes = figure(len(groups), height=1.2 + 2.6 * len(groups), sharex=True)
    for one, group in zip(axes, groups):
        _draw_comparison(one, block, group)
    axes[0].set_title(_title(block, "what survives between images, and their order"), loc="left",
                      fontsize=10)
    _legend(made, axes, columns=3)
    return [made]


def _series(block: Block) -> list[list[Line]]:
    """Rows that differ in their steps only, in the order of these, where they have a teacher."""
    groups: dict[str, list[tuple[int, Line]]] = {}
    for _, line in phrases.lines_with_teacher(block):
        settings = json.loads(line["hyper_parameters"])
        count = settings.pop("steps", None)
        if count is not None:
            key = json.dumps([line["method"].split()[0], settings, line["survives"], line["order"],
                              *(line[name] for name in COMMON)])
            groups.setdefault(key, []).append((count, line))
    return [[line for _, line in sorted(group, key=lambda pair: pair[0])]
            for group in groups.values() if len({count for count, _ in group}) > 1]


def _draw_steps(block: Block, series: Sequence[Line], names: Sequence[str]) -> Figure:
    made, axes = figure(2, 2, height=6.0, sharex=True)
    counts = [json.loads(line["hyper_parameters"])["steps"] for line in series]
    for name, colour in zip(names, COLOURS.values()):
        colour = COLOURS["black"] if name == "mean" else colour
        look: dict[str, Any] = dict(color=colour, marker="o", markersize=4)
        scores = [100 * line[name] for line in series]
        spread = [100 * _or_zero(line[f"std_{name}"]) for line in series]
        axes[0].errorbar(counts, scores, spread, capsize=2.5, label=_plain(name), **look)
        axes[0].plot(counts, [100 * line[f"teacher_{name}"] for line in series], color=colour,
                     linestyle="--", marker="")
        shift = 0.006 * (names.index(name) - (len(names) - 1) / 2) * max(counts)
        deltas, reach = zip(*(_intervals(line, [name], "delta") for line in series))
        axes[1].errorbar([count + shift for count in counts], [delta for delta, in deltas],
                         [[low for (low,), _ in reach], [high for _, (high,) in reach]],
                         capsize=2.5, **look)
        axes[2].plot(counts, [100 * line[f"agreement_{name}"] for line in series], **look)
        axes[3].plot(counts, [line[f"cosine_{name}"] for line in series], **look)
    axes[1].axhline(0, color=GREY, linewidth=1.2, zorder=1)
    alone = len(names) == 1
    axes[0].plot([], [], color=COLOURS["black"] if alone else GREY, linestyle="--", marker="",
                 label="teacher" if alone else "its teacher, same colour")
    for one, title in zip(axes, (
            f"top-1 {block.metric} in %" + ", std over seeds" * _has_spread(series),
            f"Δ teacher in points, 95 % interval ({phrases.good_sign(block)})",
            "agreement with the teacher in %", "final cosine with the teacher's feature")):
        one.set_title(title, loc="left", fontsize=10)
        one.set_xlim(left=0)
    for one in axes[2:]:
        one.set_xlabel("steps per image")
    made.suptitle(_title(block, series[0]["method"].split()[0]), x=0.01, ha="left", fontsize=10)
    _legend(made, axes[:1], columns=6)
    return made


def _comparisons(block: Block) -> list[list[Line]]:
    """Rows that differ in what survives and in the order of the stream only."""
    groups: dict[str, list[Line]] = {}
    for _, line in phrases.lines(block):
        key = json.dumps([line["hyper_parameters"], *(line[name] for name in COMMON)])
        groups.setdefault(key, []).append(line)
    return [group for group in groups.values()
            if len({line["survives"] for line in group}) > 1]


def _draw_comparison(axes: Axes, block: Block, group: Sequence[Line]) -> None:
    survives = sorted({line["survives"] for line in group}, key="nothing".__ne__)
    orders = sorted({line["order"] for line in group}, key="shuffled".__ne__)
    for line in group:
        place = survives.index(line["survives"]) * len(orders) + orders.index(line["order"])
        shift = (place - (len(survives) * len(orders) - 1) / 2) * 0.17
        scores, reach = _intervals(line, block.shown, "score")
        axes.errorbar([column + shift for column in range(len(block.shown))], scores, reach,
                      linestyle="", capsize=2.5, markersize=6,
                      marker=MARKERS[orders.index(line["order"])],
                      color=list(COLOURS.values())[survives.index(line["survives"])],
                      label=plain(f"{line['survives']} survives, {line['order']}"))
    for column, name in enumerate(block.shown):
        values = [100 * line[f"teacher_{name}"] for line in group]
        for value in sorted({value for value in values if not math.isnan(value)}):
            axes.hlines(value, column - 0.42, column + 0.42, color=GREY, linewidth=1.5, zorder=1,
                        label="teacher")
    axes.set_xticks(range(len(block.shown)), [_plain(name) for name in block.shown])
    axes.grid(False, axis="x")
    has_teacher = any(not math.isnan(line[f"delta_{name}"]) for line in group
                      for name in block.shown)
    bars = "95 % interval of Δ teacher" if has_teacher else "std over seeds"
    axes.set_ylabel(f"{plain(group[0]['method'].split()[0])}: {block.metric} in %"
                    + f"\n({bars})" * (has_teacher or _has_spread(group)))


def _intervals(line: Line, names: Sequence[str],
               what: str) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Values of columns in per cent and how far their bars reach below and above.

    The bars of "delta" are its interval; those of "score" the same interval around the score, as
    the teacher's is taken as given, or the std over seeds where there is no teacher.
    """
    values, below, above = [], [], []
    for name in names:
        value = 100 * line[f"delta_{name}" if what == "delta" else name]
        delta, low, high = (100 * line[f"{end}_{name}"]
                            for end in ("delta", "delta_low", "delta_high"))
        std = 100 * _or_zero(line[f"std_{name}"])
        values.append(value)
        # Not below 0: a difference of all images can lie beyond 1 by the last bit.
        below.append(std if math.isnan(delta) else max(delta - low, 0.0))
        above.append(std if math.isnan(delta) else max(high - delta, 0.0))
    return values, (below, above)


def _legend(made: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend below all axes, every label once."""
    handles = {label: handle for one in axes
               for handle, label in zip(*one.get_legend_handles_labels())}
    made.legend(list(handles.values()), list(handles), loc="outside lower center", frameon=False,
                ncols=columns)


def _labels(lines: Iterable[tuple[int, Line]]) -> list[str]:
    """Each row's method, with its order where orders differ; with its number in the table where
    that does not tell them apart."""
    lines = list(lines)
    several = len({line["order"] for _, line in lines}) > 1
    labels = [plain(line["method"] + f", {line['order']}" * several) for _, line in lines]
    if len(set(labels)) < len(labels):
        labels = [f"{number} {label}" for (number, _), label in zip(lines, labels)]
    return labels


def _has_spread(lines: Iterable[Line]) -> bool:
    """Whether bars can show a std: without a second seed there is none."""
    return any(len(line["seeds"].split()) > 1 for line in lines)


def _title(block: Block, what: str) -> str:
    lines = [line for _, line in phrases.lines(block)]
    images = ", ".join(sorted({str(line["num_images"]) for line in lines}))
    seeds = max(len(line["seeds"].split()) for line in lines)
    gaps = any(line["num_missing"] for line in lines)
    origins = sorted({line["images_from"] for line in lines})
    return plain("\n".join(textwrap.wrap(
        f"{phrases.title(block)}: {what} · {images} images · {seeds} seed{'s' * (seeds > 1)}"
        + " · incomplete" * gaps, TITLE_WIDTH)
        + textwrap.wrap(f"images: {'; '.join(origins)}", TITLE_WIDTH)))


def _plain(name: str) -> str:
    return plain(name.replace("_", " "))


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
