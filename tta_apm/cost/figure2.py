"""Figure 2 of the paper: cost against the number of patches processed at a time. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tta_apm.report import style

if TYPE_CHECKING:
    import pandas as pd

# The lines, by the names that both halves give them.
LINES: dict[str, dict[str, Any]] = {
    "APM, one pass": {"color": style.COLOURS["blue"], "marker": "o"},
    "APM, whole image": {"color": style.COLOURS["sky"], "marker": "s", "linestyle": ":"},
    "ViT-B/16, image and prompt": {"color": style.COLOURS["vermillion"], "marker": "",
                                   "linestyle": "--"},
}


def draw_figure_2(costs: pd.DataFrame, path: Path, device: str) -> Path:
    """Draw GFLOPs of one pass and seconds per image against patches at a time.

    Args:
        costs: columns patches, apm_gflops_per_pass, apm_gflops_per_image, apm_seconds,
            vit_gflops, vit_seconds; a multiply-add is one, as the paper counts.
        path: a .png or .svg.
        device: that the seconds were measured on, for the title.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, (work, time) = style.figure(1, 2, height=4.0)
    one_pass, whole_image, vit = LINES
    patches = costs["patches"]
    for axes, label, columns in (
            (work, "GFLOPs, forward only", {
                one_pass: "apm_gflops_per_pass", whole_image: "apm_gflops_per_image",
                vit: "vit_gflops"}),
            (time, "seconds per image, forward only", {
                whole_image: "apm_seconds", vit: "vit_seconds"})):
        for name, column in columns.items():
            axes.plot(patches, costs[column], label=name, markersize=5, **LINES[name])
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
