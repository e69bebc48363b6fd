"""Plots: draw the results of a folder. Imports no torch.

Each kind of plot is a function of a table that returns its pictures, an empty list if there is
nothing to draw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_apm.errors import UserError
from tta_apm.report import phrases, style
from tta_apm.report.build import build_tables
from tta_apm.report.plot_parts import (
    MAX_LINES, bar, bars, has_spread, labels_of, name_columns, or_zero, readable, title_of)
from tta_apm.report.protocol import Protocol
from tta_apm.report.results import load_rows
from tta_apm.report.style import COLOURS, GREY, MARKERS, plain
from tta_apm.report.table import Table, TableLine
from tta_apm.report.wanted import saved_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(folder: Path, *, kind: str | None = None, out: Path | None = None,
         metric: str | None = None) -> list[Path]:
    """Draw the results in `folder`; their mean if there are several severities.

    Args:
        folder: the results folder.
        kind: one of KINDS; None draws all kinds that have something to draw.
        out: the file to write, if there is one picture; None writes <kind>.png to `folder`.
        metric: "error" or "accuracy"; None takes that of the run.

    Returns:
        The files written.

    Raises:
        UserError: if there are no results, a file is corrupt, `kind` has nothing to draw, or `out`
            is given for several pictures.
    """
    tables = build_tables(load_rows(folder),
                          metric=metric or saved_config(folder).get("METRIC", "error"))
    last = {table.dataset: table for table in tables}
    pictures: list[tuple[str, Figure]] = []
    for name in [kind] if kind else KINDS:
        of_kind = [picture for table in last.values() for picture in KINDS[name][0](table)]
        pictures += [(f"{name}.png" if number == 1 else f"{name}-{number}.png", picture)
                     for number, picture in enumerate(of_kind, 1)]
    if not pictures:
        raise UserError(f"{folder}: a picture of kind {kind} needs {KINDS[kind or ''][1]}")
    if out and len(pictures) > 1:
        raise UserError(f"{folder} has {len(pictures)} pictures of kind {kind}, --out takes one: "
                        "leave it out to write them all to that folder")
    return [style.save(picture, out or folder / name) for name, picture in pictures]


def methods(table: Table) -> list[Figure]:
    """A heat map of methods and corruptions; darker is worse."""
    lines = table.lines
    values = [[100 * line.figures[name].value for name in table.shown] for line in lines]
    labels = labels_of(lines)
    tallest = max(1 + label.count("\n") for label in labels)
    picture, (axes,) = style.figure(height=1.9 + max(0.3, 0.2 * tallest) * len(lines))
    shades = "Blues" if table.metric == "error" else "Blues_r"
    image = axes.imshow(values, cmap=shades, aspect="auto", vmin=0, vmax=100)
    for row, of_line in enumerate(values):
        for column, value in enumerate(of_line):
            red, green, blue, _ = image.to_rgba(np.array([value]))[0]
            # A missing value is not coloured, so its text stands on white.
            pale = math.isnan(value) or 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
            axes.text(column, row, phrases.number(value, ".0f"), ha="center", va="center",
                      fontsize=9, color="black" if pale else "white")
    name_columns(axes, table)
    axes.set_yticks(range(len(lines)), labels)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    style.title(picture, title_of(table, phrases.measure(table)))
    return [picture]


def teacher(table: Table) -> list[Figure]:
    """The difference of each row to its teacher, per corruption, with its interval."""
    lines, shown = table.lines_with_teacher, table.shown
    if not lines:
        return []
    picture, (axes,) = style.figure(height=1.8 + 0.13 * len(shown) * (1 + len(lines)))
    for index, (line, label) in enumerate(zip(lines, labels_of(lines))):
        heights = [row + (index - (len(lines) - 1) / 2) * 0.7 / len(lines)
                   for row in range(len(shown))]
        axes.errorbar([100 * line.figures[name].delta for name in shown], heights,
                      xerr=bars(line, shown), linestyle="", capsize=2.5, markersize=5,
                      marker=MARKERS[index % len(MARKERS)], label=label,
                      color=list(COLOURS.values())[index % len(COLOURS)])
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    if shown[-1] == "mean":
        axes.axhline(len(shown) - 1.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(shown)), [readable(name) for name in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)  # matplotlib would leave out missing values at the ends
    axes.set_xlabel(f"{table.metric} less the teacher's, in points ({phrases.good_sign(table)}), "
                    "with 95 % interval")
    style.title(picture, title_of(table, "against the teacher on the same images"))
    style.legend(picture, [axes], columns=3)
    return [picture]


def steps(table: Table) -> list[Figure]:
    """Score, difference to the teacher, agreement and cosine against the number of steps."""
    names = table.shown if len(table.shown) <= MAX_LINES else tuple(
        name for name in table.shown if name in ("clean", "mean"))
    return [_draw_steps(table, series, names) for series in _series(table)]


def _series(table: Table) -> list[list[TableLine]]:
    """Groups of rows with a teacher that differ only in their number of steps, sorted by it."""
    groups: dict[str, list[TableLine]] = {}
    for line in table.lines_with_teacher:
        settings = dict(line.protocol.hyper_parameters or {})
        if settings.pop("steps", None) is not None:
            key = _key(replace(line.protocol, row="", hyper_parameters=settings))
            groups.setdefault(key, []).append(line)
    return [sorted(group, key=_steps) for group in groups.values()
            if len(set(map(_steps, group))) > 1]


def _steps(line: TableLine) -> int:
    return int((line.protocol.hyper_parameters or {})["steps"])


def _key(protocol: Protocol) -> str:
    return json.dumps(vars(protocol), sort_keys=True)


def _draw_steps(table: Table, series: Sequence[TableLine], names: Sequence[str]) -> Figure:
    picture, axes = style.figure(2, 2, height=6.0, sharex=True)
    counts = [_steps(line) for line in series]
    for name, colour in zip(names, COLOURS.values()):
        colour = COLOURS["black"] if name == "mean" else colour
        style_of_line: dict[str, Any] = dict(color=colour, marker="o", markersize=4)
        figures = [line.figures[name] for line in series]
        axes[0].errorbar(counts, [100 * figure.value for figure in figures],
                         [100 * or_zero(figure.std) for figure in figures], capsize=2.5,
                         label=readable(name), **style_of_line)
        axes[0].plot(counts, [100 * figure.teacher for figure in figures], color=colour,
                     linestyle="--", marker="")
        shift = 0.006 * (names.index(name) - (len(names) - 1) / 2) * max(counts)
        below, above = zip(*(bar(line, name) for line in series))
        axes[1].errorbar([count + shift for count in counts],
                         [100 * figure.delta for figure in figures], [below, above], capsize=2.5,
                         **style_of_line)
        axes[2].plot(counts, [100 * figure.agreement for figure in figures], **style_of_line)
        axes[3].plot(counts, [figure.cosine for figure in figures], **style_of_line)
    axes[1].axhline(0, color=GREY, linewidth=1.2, zorder=1)
    alone = len(names) == 1
    axes[0].plot([], [], color=COLOURS["black"] if alone else GREY, linestyle="--", marker="",
                 label="teacher" if alone else "its teacher, same colour")
    for one, title in zip(axes, (
            f"top-1 {table.metric} in %{', std over seeds' if has_spread(series) else ''}",
            f"Δ teacher in points, 95 % interval ({phrases.good_sign(table)})",
            "agreement with the teacher in %", "final cosine with the teacher's feature")):
        style.title(one, title, style.WIDTH / 2 - 0.8)
        one.set_xlim(left=0)
    for one in axes[2:]:
        one.set_xlabel("steps per image")
    style.title(picture, title_of(table, series[0].protocol.method))
    style.legend(picture, axes[:1], columns=6)
    return picture


def audit(table: Table) -> list[Figure]:
    """The score per domain by what survives between images and by their order, with the teacher."""
    groups = _comparisons(table)
    if not groups:
        return []
    picture, axes = style.figure(len(groups), height=2.0 + 2.6 * len(groups), sharex=True)
    for one, group in zip(axes, groups):
        _draw_comparison(one, table, group)
    style.title(picture, title_of(table, "what survives between images, and their order"))
    style.legend(picture, axes, columns=3)
    return [picture]


def _comparisons(table: Table) -> list[list[TableLine]]:
    """Groups of rows that differ only in what survives and in the order of the stream."""
    groups: dict[str, list[TableLine]] = {}
    for line in table.lines:
        key = _key(replace(line.protocol, row="", method="", scope="", survives="", order=""))
        groups.setdefault(key, []).append(line)
    return [group for group in groups.values()
            if len({line.protocol.survives for line in group}) > 1]


def _draw_comparison(axes: Axes, table: Table, group: Sequence[TableLine]) -> None:
    states = _first("nothing", (line.protocol.survives for line in group))
    orders = _first("shuffled", (line.protocol.order for line in group))
    for line in group:
        state, order = line.protocol.survives, line.protocol.order
        position = states.index(state) * len(orders) + orders.index(order)
        shift = (position - (len(states) * len(orders) - 1) / 2) * 0.17
        axes.errorbar([column + shift for column in range(len(table.shown))],
                      [100 * line.figures[name].value for name in table.shown],
                      bars(line, table.shown), linestyle="", capsize=2.5, markersize=6,
                      marker=MARKERS[orders.index(order)],
                      color=list(COLOURS.values())[states.index(state)],
                      label=plain(f"{state} survives, {order}"))
    for column, name in enumerate(table.shown):
        values = {100 * line.figures[name].teacher for line in group}
        for value in sorted(value for value in values if not math.isnan(value)):
            axes.hlines(value, column - 0.42, column + 0.42, color=GREY, linewidth=1.5, zorder=1,
                        label="teacher")
    name_columns(axes, table)
    axes.grid(False, axis="x")
    label = f"{plain(group[0].protocol.method)}: {table.metric} in %"
    if any(line.has_teacher for line in group):
        label += "\n(95 % interval of Δ teacher)"
    elif has_spread(group):
        label += "\n(std over seeds)"
    axes.set_ylabel(label)


def _first(name: str, names: Iterable[str]) -> list[str]:
    """Distinct names sorted, `name` before all others."""
    return sorted(set(names), key=lambda each: (each != name, each))


# The function of each kind, and what it needs, for the error if it has nothing to draw.
KINDS: dict[str, tuple[Callable[[Table], list[Figure]], str]] = {
    "methods": (methods, "any results"),
    "teacher": (teacher, "a method with a teacher"),
    "steps": (steps, "a method with a teacher and two numbers of steps, e.g. METHODS "
              "[apm STEPS 5, apm STEPS 20]"),
    "audit": (audit, "the results of the configs in cfgs/audit"),
}
