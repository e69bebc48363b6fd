"""Figure 2 of the paper: cost against the number of patches processed at a time. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tta_apm.report import style

# The style of each line, by its name in both halves of the figure.
LINES: dict[str, dict[str, Any]] = {
    "APM, one pass": {"color": style.COLOURS["blue"], "marker": "o"},
    "APM, whole image": {"color": style.COLOURS["sky"], "marker": "s", "linestyle": ":"},
    "ViT-B/16, image and prompt": {"color": style.COLOURS["vermillion"], "marker": "",
                                   "linestyle": "--"},
}


@dataclass(frozen=True)
class PatchCost:
    """The cost of an image if APM processes `patches` of it at a time, and the cost of a ViT.

    GFLOPs are those of forward passes and count a multiply-add once, as in the paper.
    """

    patches: int
    apm_gflops_per_pass: float
    apm_gflops_per_image: float
    apm_seconds: float
    vit_gflops: float
    vit_seconds: float


def draw_figure_2(costs: Sequence[PatchCost], path: Path, device: str) -> Path:
    """Draw GFLOPs of one pass and seconds per image against patches at a time.

    Args:
        costs: one entry per number of patches.
        path: a .png or .svg.
        device: where the seconds were measured, for the title.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, (work, time) = style.figure(1, 2, height=4.0)
    one_pass, whole_image, vit = LINES
    patches = [cost.patches for cost in costs]
    for axes, label, lines in (
            (work, "GFLOPs, forward only", {
                one_pass: [cost.apm_gflops_per_pass for cost in costs],
                whole_image: [cost.apm_gflops_per_image for cost in costs],
                vit: [cost.vit_gflops for cost in costs]}),
            (time, "seconds per image, forward only", {
                whole_image: [cost.apm_seconds for cost in costs],
                vit: [cost.vit_seconds for cost in costs]})):
        for name, values in lines.items():
            axes.plot(patches, values, label=name, markersize=5, **LINES[name])
        axes.set(xscale="log", yscale="log", xlabel="patches at a time", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(patches, [str(count) for count in patches], rotation=60)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
    half = style.WIDTH / 2 - 0.8
    style.title(work, "a multiply-add counted once", half)
    style.title(time, device, half)
    style.legend(figure, [work, time], columns=3)
    return style.save(figure, path)
