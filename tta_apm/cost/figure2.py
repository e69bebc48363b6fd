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
            (work, "apm_gflops_per_pass", "vit_gflops", "GFLOPs of one pass, forward only"),
            (time, "apm_seconds", "vit_seconds", "seconds per image, forward only")):
        axes.plot(patches, costs[of_apm], color=style.COLOURS["blue"], marker="o", markersize=5)
        axes.plot(patches, costs[of_vit], color=style.COLOURS["vermillion"], linestyle="--",
                  marker="")
        axes.set(xscale="log", yscale="log", xlabel="patches at a time", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(patches, [str(count) for count in patches], rotation=60)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
    whole = costs["apm_gflops_per_image"]
    work.axhline(whole.iloc[0], color=style.COLOURS["blue"], linestyle=":")
    # Each line's text is beside its point number `place`: where the others are not.
    for axes, line, place, text, colour, offset, side in (
            (work, whole, 0, "APM, whole image", "blue", (0, -12), "left"),
            (work, costs["vit_gflops"], 0, "ViT-B/16, image and prompt", "vermillion", (0, 4),
             "left"),
            (work, costs["apm_gflops_per_pass"], 3, "APM, one pass", "blue", (6, -12), "left"),
            (time, costs["apm_seconds"], 1, "APM, whole image", "blue", (8, 0), "left"),
            (time, costs["vit_seconds"], -1, "ViT-B/16,\nimage and prompt", "vermillion", (0, 4),
             "right")):
        axes.annotate(text, (patches.iloc[place], line.iloc[place]), xytext=offset, ha=side,
                      textcoords="offset points", color=style.COLOURS[colour])
    work.margins(y=0.1)  # room for the text above the topmost line
    work.set_title("a multiply-add counted once", fontsize=10)
    time.set_title(device, fontsize=10)
    return style.save(made, path)
