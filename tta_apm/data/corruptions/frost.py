"""Pictures of frost to blend into images: the official ones if available, else painted here.

The official pictures are photographs from hendrycks/robustness, which are not part of this package.
The painted ones show ice ferns on cloudy glass in the photographs' colours and contrast. Results
with them are not comparable with published frost figures.
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

PAINTED_HEIGHT, PAINTED_WIDTH = 400, 600
# Of each painted picture: mean colour, contrast (standard deviation in grey levels), number of
# ferns and their length in pixels.
PAINTED = (
    ((78, 149, 166), 20, 300, 60),
    ((200, 205, 214), 24, 800, 60),
    ((196, 202, 212), 26, 450, 100),
    ((138, 153, 165), 29, 1500, 35),
    ((112, 123, 135), 42, 450, 65),
)
BRANCHES = 9  # side branches on each side of a stem
GENERATIONS = 3  # stem, branches, twigs


def frost_source(frost_dir: str | os.PathLike[str] | None = None) -> str:
    """The source of the pictures: "official", "imagecorruptions" or "procedural" (painted here).

    Raises:
        UserError: if `frost_dir` is given and lacks one of the five pictures.
    """
    if frost_dir is not None:
        _require_pictures(Path(frost_dir))
        return "official"
    return "procedural" if _installed_folder() is None else "imagecorruptions"


def frost_folder(frost_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of the five pictures; None if they are painted here. Raises as frost_source."""
    if frost_dir is not None:
        _require_pictures(Path(frost_dir))
        return Path(frost_dir)
    return _installed_folder()


@lru_cache(maxsize=16)
def frost_picture(folder: Path | None, number: int, shrink: int, height: int, width: int
                  ) -> np.ndarray:
    """Picture `number` (0 to 4), shrunk by `shrink`: uint8 [h,w,3] with h > height, w > width.

    For an odd `shrink`, taking the middle one of every `shrink` pixels equals OpenCV's linear
    resizing in the official script. A picture that would not be larger than the image is shrunk
    less, or enlarged, until it is.
    """
    if folder is None:
        with _PAINTING:
            picture = _paint(number)
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
    """The folder of an installed imagecorruptions, which is not imported; None without it."""
    spec = find_spec("imagecorruptions")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "frost"
    return folder if all((folder / name).is_file() for name in PICTURES) else None


# Images are corrupted in threads. Without the lock, several would paint the same picture at the
# same time, which takes much memory.
_PAINTING = Lock()


@lru_cache(maxsize=len(PICTURES))
def _paint(number: int) -> np.ndarray:
    """Ice ferns uint8 [h,w,3], lit from the upper left; fixed for one version of Pillow."""
    colour, contrast, ferns, length = PAINTED[number]
    generator = np.random.default_rng((2019, number))
    ice = _ferns(generator, ferns, length)
    clouds = sum(_cloud(generator, sigma) for sigma in (4, 16, 60))
    relief = ice - np.roll(ice, (2, 2), axis=(0, 1))
    shade = _standardised(ice + 0.8 * relief) + 0.35 * clouds
    levels = np.array(colour) + contrast * _standardised(shade)[..., None]
    return np.clip(levels, 0, 255).astype(np.uint8)


def _ferns(generator: np.random.Generator, number: int, length: float) -> np.ndarray:
    """Height of the ice [h,w] in [0,1]: ferns at random positions, later ones over earlier ones."""
    canvas = Image.new("L", (PAINTED_WIDTH, PAINTED_HEIGHT))
    pen = ImageDraw.Draw(canvas)
    start = generator.uniform((0, 0), (PAINTED_WIDTH, PAINTED_HEIGHT), (number, 2))
    angle = generator.uniform(0, 2 * np.pi, number)
    size = length * generator.uniform(0.4, 1.2, number)
    light = generator.uniform(0.4, 1, number).tolist()
    lines = []  # one array per generation, with the lines of fern f at [:, f]
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
    """Starts [m,2], angles [m] and lengths [m] of the branches of the given lines.

    Branches come in pairs at 60 degrees, as in ice crystals, and are shorter towards the tip.
    """
    along = np.linspace(0.1, 0.95, BRANCHES)[:, None]
    starts = start + along[..., None] * step
    sizes = 0.45 * size * (1.05 - along) * generator.uniform(0.6, 1.3, (BRANCHES, len(size)))
    sides = [angle + side * np.pi / 3 + 0 * along for side in (-1, 1)]
    return (np.concatenate([starts, starts]).reshape(-1, 2), np.concatenate(sides).ravel(),
            np.concatenate([sizes, sizes]).ravel())


def _cloud(generator: np.random.Generator, sigma: float) -> np.ndarray:
    noise = generator.standard_normal((PAINTED_HEIGHT, PAINTED_WIDTH))
    return _standardised(gaussian_filter(noise, sigma))


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()
