"""Pictures of a student's field (islands, error maps, reconstructions) and of its training.

All functions take arrays; images are RGB [h,w,3] in [0,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tta_apm.errors import writing
from tta_apm.report import style

# Its lightness is linear in the value, also for the colour-blind.
COLOUR_MAP = "cividis"
# Start and range of the channels of YCbCr: lightness, blue against yellow, red against green.
START, RANGE = (0.15, 0.2, 0.2), (0.75, 0.6, 0.6)
IMAGE_SHARE = 0.45  # share of the image in an overlay
TITLE_HEIGHT, TITLE_GAP = 0.17, 0.2  # inches: a line of a title, and the gaps around the title
GIF_WIDTH = 256  # pixels
GIF_MILLISECONDS = 150


class Panel(NamedTuple):
    """One panel of a picture."""

    title: str
    values: np.ndarray  # an image, or numbers [h,w]; the panels of a row share their colour scale
    beneath: np.ndarray | None = None  # an image to draw `values` over
    aspect: float = 1.0  # height / width of the photograph, which the student sees as a square


def paint(embedded: np.ndarray) -> np.ndarray:
    """Map numbers [h,w,1] or [h,w,3] in [0,1] to colours [h,w,3].

    Of three numbers, the first is lightness, the second blue against yellow and the third red
    against green: a colour-blind reader loses only the third.
    """
    if embedded.shape[-1] == 1:
        from matplotlib import colormaps
        return colormaps[COLOUR_MAP](embedded[..., 0])[..., :3]
    channels = (255 * (np.array(START) + np.array(RANGE) * embedded)).round().astype(np.uint8)
    merged = Image.merge("YCbCr", [Image.fromarray(channel) for channel
                                   in np.moveaxis(channels, -1, 0)])
    return np.asarray(merged.convert("RGB")) / 255


def draw_panels(rows: Sequence[Sequence[Panel]], path: Path, bar: str = "") -> Path:
    """Draw panels row by row to `path` and return it; shorter rows end with empty panels.

    Args:
        bar: the label of the colour bar at the end of rows with panels of numbers.
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
    """Plot losses [step, kind] to `path` and return it; a loss that is always 0 is left out."""
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
    """Write images as a film that loops forwards and backwards, and return `path`.

    Raises:
        UserError: if the file cannot be written.
    """
    height = round(GIF_WIDTH * max(panel.aspect for panel in panels))
    frames = []
    for panel in panels:
        image = Image.fromarray((panel.values * 255).round().astype(np.uint8)).resize(
            (GIF_WIDTH, round(GIF_WIDTH * panel.aspect)), Image.Resampling.NEAREST)
        frame = Image.new("RGB", (GIF_WIDTH, height), "white")
        frame.paste(image, (0, (height - image.height) // 2))
        frames.append(frame)
    first, *rest = [*frames, *frames[-2:0:-1]]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        first.save(path, save_all=True, append_images=rest, duration=GIF_MILLISECONDS, loop=0)
    return path


def _over(values: np.ndarray, beneath: np.ndarray | None) -> np.ndarray:
    """`values`, blended with the image beneath, if any, at that image's size."""
    if beneath is None:
        return values
    height, width, _ = beneath.shape
    scaled = Image.fromarray((values * 255).round().astype(np.uint8)).resize(
        (width, height), Image.Resampling.NEAREST)
    return IMAGE_SHARE * beneath + (1 - IMAGE_SHARE) * np.asarray(scaled) / 255
