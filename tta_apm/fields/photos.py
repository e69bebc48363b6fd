"""Photos: read the image files of a folder as squares, and preprocess them for a student."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from tta_apm.apm.student import MEAN, STD
from tta_apm.data.pictures import SUFFIXES, read_picture
from tta_apm.errors import UserError, nearest

# Photos that scikit-learn ships, as a folder: sklearn/china.jpg and sklearn/flower.jpg.
SHIPPED = "sklearn"


class Preprocessing(nn.Module):
    """The image size and normalisation of a student; by default ImageNet's mean and std.

    Args:
        image_size: side in pixels.
        mean, std: per channel.
        stretch: first stretch the values of each image to [0,1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD,
                 stretch: bool = False) -> None:
        super().__init__()
        self.image_size = image_size
        self.stretch = stretch
        # Buffers: lists would be copied to the device at each step.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images [B,3,H,W] in [0,1]."""
        if self.stretch:
            low, high = (bound(images, dim=(1, 2, 3), keepdim=True)
                         for bound in (torch.amin, torch.amax))
            images = (images - low) / (high - low).clamp(min=1e-6)
        return (images - self.mean) / self.std


def find_images(folder: str) -> list[Path]:
    """The image files in `folder` and the folders below it, sorted.

    Raises:
        UserError: if there is no such folder, or no image in it.
    """
    root = _shipped() if folder == SHIPPED else Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"IMAGES: folder not found: {folder!r}; {SHIPPED!r} names the photos that "
                        "scikit-learn ships")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES
                   and not path.name.startswith(".") and path.is_file())
    if not found:
        raise UserError(f"IMAGES: no image file in {folder!r} or below it")
    return found


def find_image(name: str) -> Path:
    """The file that `name` means: a path, or sklearn/NAME. UserError if there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.parts[:1] == (SHIPPED,) and (_shipped() / path.name).is_file():
        return _shipped() / path.name
    known = [f"{SHIPPED}/{file.name}" for file in find_images(SHIPPED)]
    raise UserError(f"image not found: {name!r}: {nearest(name, known)}")


Box = tuple[float, float, float, float]


def read_image(path: Path, size: int, crop: Callable[[int, int], Box] | None = None) -> Tensor:
    """Read an image as [3,size,size] in [0,1], upright, squeezed into a square (bicubic).

    Args:
        crop: maps the image's width and height to the part to take: left, top, right and bottom in
            pixels; None takes the whole image.

    Raises:
        UserError: as read_picture.
    """
    def square(image: Image.Image) -> np.ndarray:
        box = crop(*image.size) if crop else None
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box))

    pixels = read_picture(path, square, as_seen=True)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def aspect_of(path: Path) -> float:
    """Height / width of an image, upright. Raises as read_image."""
    return read_picture(path, lambda image: image.height / image.width, as_seen=True)


class Photos(Dataset):
    """The images of a pretraining, indexed by their position in an endless stream.

    Each epoch has another order and, with `crop`, other squares. Both depend only on the seed and
    the position, so that a run sees the same images if it is resumed or split over processes.

    Args:
        files: the N image files.
        size: side in pixels.
        crop: see PretrainConfig.
        seed: decides the order and the squares.
    """

    def __init__(self, files: list[Path], size: int, crop: float, seed: int) -> None:
        self.files = files
        self.size = size
        self.crop = crop
        self.seed = seed

    def __getitem__(self, position: int) -> tuple[int, Tensor]:
        """Index of the file and image [3,size,size] in [0,1] at `position` of the stream."""
        index = self.index(position)
        crop = partial(self._square, position) if self.crop else None
        return index, read_image(self.files[index], self.size, crop)

    def index(self, position: int) -> int:
        """The index of the file at `position`."""
        epoch, rank = divmod(position, len(self.files))
        return int(_order(len(self.files), self.seed, epoch)[rank])

    def _square(self, position: int, width: int, height: int) -> Box:
        fraction, left, top = np.random.default_rng((self.seed, 0, position)).random(3)
        side = min(width, height) * (self.crop + (1 - self.crop) * fraction)
        corner = float(left * (width - side)), float(top * (height - side))
        return *corner, corner[0] + float(side), corner[1] + float(side)


@lru_cache(2)  # a batch may span two epochs; without the cache every image would shuffle all
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _shipped() -> Path:
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "images"
