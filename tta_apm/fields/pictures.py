"""Pictures of a student's field: islands, error maps, reconstructions, and of its training.

All take arrays; images are RGB [h,w,3] in [0,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tta_apm.errors import writing
from tta_apm.report import style

# Even steps of its lightness are even steps of value, for the colour-blind too.
COLOUR_MAP = "cividis"
# Of lightness, blue against yellow and red against green: where each starts and how far it goes.
DARKEST, RANGE = (0.15, 0.2, 0.2), (0.75, 0.6, 0.6)
SHOWN_THROUGH = 0.45  # of the image beneath an overlay
TITLE_HEIGHT, TITLE_GAP = 0.17, 0.2  # inches of a line above a panel, and of the gaps around it
GIF_SIDE = 256  # pixels of its width
GIF_MILLISECONDS = 150


class Panel(NamedTuple):
    """One picture of many."""

    title: str
    values: np.ndarray  # an image, or numbers [h,w] that share their scale along a row
    beneath: np.ndarray | None = None  # an image to draw `values` over
    aspect: float = 1.0  # height / width to show it with: a student sees photographs squeezed


def paint(embedded: np.ndarray) -> np.ndarray:
    """Numbers [h,w,1] or [h,w,3] in [0,1] as colours [h,w,3].

    Of three, the first is lightness, the second blue against yellow and the third red against
    green: who cannot tell the last two loses that one alone.
    """
    if embedded.shape[-1] == 1:
        from matplotlib import colormaps
        return colormaps[COLOUR_MAP](embedded[..., 0])[..., :3]
    channels = (255 * (np.array(DARKEST) + np.array(RANGE) * embedded)).round().astype(np.uint8)
    merged = Image.merge("YCbCr", [Image.fromarray(channel) for channel
                                   in np.moveaxis(channels, -1, 0)])
    return np.asarray(merged.convert("RGB")) / 255


def draw_panels(rows: Sequence[Sequence[Panel]], path: Path, bar: str = "") -> Path:
    """Write panels row by row; missing ones at the end of a row stay empty.

    Args:
        bar: what the numbers of number panels are; they get a scale at the end of their row.
    """
    columns = max(len(row) for row in rows)
    has_bar = any(panel.values.ndim == 2 for row in rows for panel in row)
    side = style.WIDTH / (columns + (0.6 if has_bar else 0))
    titles = [[style.wrap(panel.title, side - 0.1) for panel in row] for row in rows]
    heights = [side * max(panel.aspect for panel in row) for row in rows]
    above = [TITLE_GAP + TITLE_HEIGHT * max(1 + title.count("\n") for title in of_row)
             for of_row in titles]
    figure, axes = style.figure(len(rows), columns, height=sum(heights) + sum(above),
                                gridspec_kw={"height_ratios": heights})
    for number, row in enumerate(rows):
        of_row = axes[number * columns:(number + 1) * columns]
        scalars = [panel.values for panel in row if panel.values.ndim == 2]
        limits = {"vmin": 0, "vmax": max(map(np.max, scalars))} if scalars else {}
        drawn = None
        for one, panel, title in zip(of_row, row, titles[number]):
            style.for_images(one, style.plain(title))
            if panel.values.ndim == 2:
                drawn = one.imshow(panel.values, cmap=COLOUR_MAP, **limits)
            else:
                one.imshow(_over(panel.values, panel.beneath))
            height, width = one.images[0].get_size()
            one.set_aspect(panel.aspect * width / height)
        for one in of_row[len(row):]:
            one.set_axis_off()
        if drawn is not None:
            figure.colorbar(drawn, ax=of_row, shrink=0.9, pad=0.01,
                            label=style.wrap(bar, 0.9 * heights[number]))
    return style.save(figure, path)


def draw_losses(losses: np.ndarray, names: Sequence[str], path: Path) -> Path:
    """Write the curves of losses [step, kind], those that are 0 throughout left out."""
    figure, (axes,) = style.figure(height=3.2)
    steps = np.arange(1, len(losses) + 1)
    for name, values in zip(names, losses.T):
        if values.any():
            axes.plot(steps, values, label=f"{name}, {values[-1]:.3g} at the end", marker="",
                      linewidth=1.2)
    axes.set(xlabel="step", ylabel="mean squared error", yscale="log")
    style.legend(figure, [axes], columns=3)
    return style.save(figure, path)


def write_gif(panels: Sequence[Panel], path: Path) -> Path:
    """Write images as an endless film, there and back. UserError if `path` cannot be written."""
    height = round(GIF_SIDE * max(panel.aspect for panel in panels))
    frames = []
    for panel in panels:
        image = Image.fromarray((panel.values * 255).round().astype(np.uint8)).resize(
            (GIF_SIDE, round(GIF_SIDE * panel.aspect)), Image.Resampling.NEAREST)
        frame = Image.new("RGB", (GIF_SIDE, height), "white")
        frame.paste(image, (0, (height - image.height) // 2))
        frames.append(frame)
    first, *rest = [*frames, *frames[-2:0:-1]]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        first.save(path, save_all=True, append_images=rest, duration=GIF_MILLISECONDS, loop=0)
    return path


def _over(values: np.ndarray, beneath: np.ndarray | None) -> np.ndarray:
    """`values`, or a mixture of them with the image beneath, at that one's size."""
    if beneath is None:
        return values
    height, width, _ = beneath.shape
    scaled = Image.fromarray((values * 255).round().astype(np.uint8)).resize(
        (width, height), Image.Resampling.NEAREST)
    return SHOWN_THROUGH * beneath + (1 - SHOWN_THROUGH) * np.asarray(scaled) / 255
