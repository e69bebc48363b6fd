"""Pictures of frost, to be laid over images: official ones where they are, else drawn here.

The official pictures are photographs that belong to hendrycks/robustness and are no part of this
project. The drawn ones are ice ferns on cloudy glass, whose colours and contrast follow the
photographs; results with them are not comparable with published frost figures.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from tta_apm.data.pictures import read_picture
from tta_apm.errors import UserError

# A sixth picture ships with these, but the official script never picks it.
PICTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")

DRAWN_HEIGHT, DRAWN_WIDTH = 400, 600
# Mean colour, contrast (standard deviation in grey levels), number of ferns and their length.
DRAWN = (
    ((78, 149, 166), 20, 300, 60),
    ((200, 205, 214), 24, 800, 60),
    ((196, 202, 212), 26, 450, 100),
    ((138, 153, 165), 29, 1500, 35),
    ((112, 123, 135), 42, 450, 65),
)
BRANCHES = 9  # side branches on each side of a stem
GENERATIONS = 3  # stem, branches, twigs


def frost_source(frost_dir: str | os.PathLike[str] | None = None) -> str:
    """Where the pictures come from: "official", "imagecorruptions" or "procedural".

    Raises:
        UserError: if `frost_dir` is given and lacks one of the five pictures.
    """
    if frost_dir is not None:
        _require_pictures(Path(frost_dir))
        return "official"
    return "procedural" if _installed_folder() is None else "imagecorruptions"


def frost_folder(frost_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Folder of the five pictures, None where they have to be drawn. Raises as frost_source."""
    if frost_dir is not None:
        _require_pictures(Path(frost_dir))
        return Path(frost_dir)
    return _installed_folder()


@lru_cache(maxsize=16)
def frost_picture(folder: Path | None, number: int, shrink: int, height: int, width: int
                  ) -> np.ndarray:
    """Picture `number` (0 to 4), `shrink` times smaller, uint8 [h,w,3], h > height, w > width.

    Taking the middle one of every `shrink` pixels equals OpenCV's linear resizing by 1/shrink for
    odd values, as the official script does it. A picture that would then not be larger than the
    image is shrunk less, or enlarged, until it just is.
    """
    if folder is None:
        with _DRAWING:
            picture = _draw(number)
    else:
        picture = _load(folder / PICTURES[number])
    small = picture[shrink // 2::shrink, shrink // 2::shrink]
    if small.shape[0] > height and small.shape[1] > width:
        return small
    tall, wide = picture.shape[:2]
    scale = max((height + 1) / tall, (width + 1) / wide)
    size = (max(width + 1, round(wide * scale)), max(height + 1, round(tall * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _load(path: Path) -> np.ndarray:
    return read_picture(path, np.asarray)


def _require_pictures(folder: Path) -> None:
    missing = [name for name in PICTURES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"FROST_DIR {str(folder)!r} lacks {', '.join(missing)}: it must hold "
                        f"{', '.join(PICTURES)}; left empty, another source of frost is used")


def _installed_folder() -> Path | None:
    """Pictures of an installed imagecorruptions, which is looked up but not imported."""
    spec = find_spec("imagecorruptions")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "frost"
    return folder if all((folder / name).is_file() for name in PICTURES) else None


# Images are corrupted in threads: else several would draw the same picture, in much memory each.
_DRAWING = Lock()


@lru_cache(maxsize=len(PICTURES))
def _draw(number: int) -> np.ndarray:
    """Ice ferns uint8 [h,w,3], lit from the upper left; the same with one version of Pillow."""
    colour, contrast, ferns, length = DRAWN[number]
    generator = np.random.default_rng((2019, number))
    ice = _ferns(generator, ferns, length)
    clouds = sum(_cloud(generator, sigma) for sigma in (4, 16, 60))
    relief = ice - np.roll(ice, (2, 2), axis=(0, 1))
    shade = _standardised(ice + 0.8 * relief) + 0.35 * clouds
    levels = np.array(colour) + contrast * _standardised(shade)[..., None]
    return np.clip(levels, 0, 255).astype(np.uint8)


def _ferns(generator: np.random.Generator, number: int, length: float) -> np.ndarray:
    """Height of ice [h,w] in [0,1]: ferns anywhere, the later ones covering the earlier."""
    canvas = Image.new("L", (DRAWN_WIDTH, DRAWN_HEIGHT))
    pen = ImageDraw.Draw(canvas)
    start = generator.uniform((0, 0), (DRAWN_WIDTH, DRAWN_HEIGHT), (number, 2))
    angle = generator.uniform(0, 2 * np.pi, number)
    size = length * generator.uniform(0.4, 1.2, number)
    light = generator.uniform(0.4, 1, number).tolist()
    lines = []  # of each generation, those of fern f at [:, f]
    for _ in range(GENERATIONS):
        step = size[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        lines.append(np.concatenate([start, start + step], axis=1).reshape(-1, number, 4))
        start, angle, size = _branches(generator, start, step, angle, size)
    for fern in range(number):
        stem, branches, twigs = (generation[:, fern] for generation in lines)
        hull = [stem[0, :2], branches[2, 2:], stem[0, 2:], branches[BRANCHES + 2, 2:]]
        pen.polygon([tuple(corner) for corner in hull], fill=int(40 * light[fern]))
        for line in twigs.tolist():
            pen.line(line, fill=int(110 * light[fern]))
        for line in branches.tolist():
            pen.line(line, fill=int(180 * light[fern]))
        pen.line(stem[0].tolist(), fill=int(255 * light[fern]), width=2)
    return gaussian_filter(np.asarray(canvas, float) / 255, 0.6)


def _branches(generator: np.random.Generator, start: np.ndarray, step: np.ndarray,
              angle: np.ndarray, size: np.ndarray
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts [m,2], angles [m] and lengths [m] of the branches of the given lines: in pairs, 60
    degrees off as water crystallises, and shorter towards the tip."""
    along = np.linspace(0.1, 0.95, BRANCHES)[:, None]
    starts = start + along[..., None] * step
    sizes = 0.45 * size * (1.05 - along) * generator.uniform(0.6, 1.3, (BRANCHES, len(size)))
    sides = [angle + side * np.pi / 3 + 0 * along for side in (-1, 1)]
    return (np.concatenate([starts, starts]).reshape(-1, 2), np.concatenate(sides).ravel(),
            np.concatenate([sizes, sizes]).ravel())


def _cloud(generator: np.random.Generator, sigma: float) -> np.ndarray:
    noise = generator.standard_normal((DRAWN_HEIGHT, DRAWN_WIDTH))
    return _standardised(gaussian_filter(noise, sigma))


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()
