"""Figure 2 of the paper: cost against the number of patches processed at a time. No torch."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tta_apm.report import style


def draw_figure_2(costs: pd.DataFrame, path: Path, device: str) -> Path:
    """Draw GFLOPs of one pass and seconds per image against patches at a time.

    Args:
        costs: columns patches, apm_gflops_per_pass, apm_gflops_per_image, apm_seconds,
            vit_gflops, vit_seconds; a multiply-add is one, as the paper counts.
        path: a .png or .svg.
        device: that the seconds were measured on, for the title.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    made, (work, time) = style.figure(1, 2, height=3.6)
    patches = costs["patches"]
    for axes, of_apm, of_vit, label in (
            (work, "apm_gflops_per_pass", "vit_gflops", "GFLOPs of one pass"),
            (time, "apm_seconds", "vit_seconds", "seconds per image")):
        axes.plot(patches, costs[of_apm], color=style.COLOURS["blue"], marker="o", markersize=5)
        axes.plot(patches, costs[of_vit], color=style.COLOURS["vermillion"], linestyle="--",
                  marker="")
        axes.set(xscale="log", yscale="log", xlabel="patches at a time", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(patches, [str(count) for count in patches], rotation=60)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
    work.axhline(costs["apm_gflops_per_image"].iloc[0], color=style.COLOURS["blue"],
                 linestyle=":")
    work.annotate("APM, whole image", (patches.iloc[0], costs["apm_gflops_per_image"].iloc[0]),
                  xytext=(0, -12), textcoords="offset points", color=style.COLOURS["blue"])
    work.annotate("ViT-B/16, image and prompt", (patches.iloc[0], costs["vit_gflops"].iloc[0]),
                  xytext=(0, 4), textcoords="offset points", color=style.COLOURS["vermillion"])
    work.annotate("APM, one pass", (patches.iloc[3], costs["apm_gflops_per_pass"].iloc[3]),
                  xytext=(6, -12), textcoords="offset points", color=style.COLOURS["blue"])
    work.set_title("one multiply-add = one", fontsize=10)
    time.set_title(device, fontsize=10)
    return style.save(made, path)
