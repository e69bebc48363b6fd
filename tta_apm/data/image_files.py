"""ImageFiles: a data set of image files in class folders, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from PIL import Image

from tta_apm.data.dataset import DataSet, Domain, Outputs, hash_files, refuse_corruption
from tta_apm.errors import UserError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
RESIZED = 256  # the shorter side, before the crop
SIDE = 224

# What PIL raises for a file that is none of its images, or not a whole one.
BAD_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Source(Protocol):
    """Where an image is read from: a Path, or anything that opens like one and names itself."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        ...


class ImageFiles(DataSet):
    """Image files below a folder, resized and cropped to 224x224 as is usual for ImageNet.

    Args:
        name, class_names, template_set, outputs: see DataSet.
        folder: that holds them.
        files: their paths below it, in the order of the data set.
        labels: int64 [N].
        origin: what they are, for the record.
        resized: the shorter side, in pixels, before the crop.
    """

    def __init__(self, name: str, folder: Path, files: Sequence[str], labels: np.ndarray, *,
                 class_names: Sequence[str], template_set: str, origin: str,
                 outputs: Outputs | None = None, resized: int = RESIZED) -> None:
        self.name = name
        self.folder = folder
        self.files = files
        self.labels = labels
        self.class_names = tuple(class_names)
        self.template_set = template_set
        self.origin = origin
        self.outputs = outputs
        self.resized = resized

    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        return read_images([self.folder / self.files[index] for index in indices],
                           partial(resize_and_crop, resized=self.resized))

    def check(self, domain: Domain) -> None:
        refuse_corruption(self.name, domain)

    def describe(self, domain: Domain) -> str:
        return f"{self.origin}, {describe_crop(self.resized)}"

    def signature(self, domain: Domain, count: int) -> str | None:
        return hash_files([self.folder / file for file in self.files[:count]], self.folder)


def list_images(folder: Path, classes: Sequence[str], advice: str
                ) -> tuple[list[str], np.ndarray]:
    """The images in class folders, as "class/file" in a fixed order that mixes the classes.

    Args:
        folder: that holds the class folders.
        classes: their names, in the order of the labels.

    Returns:
        The files, and the position of each one's class in `classes`, int64 [N].

    Raises:
        UserError: if a class folder is missing or holds no image.
    """
    check_classes(folder, classes, advice)
    files: list[str] = []
    counts = []
    for name in classes:
        inside = sorted(entry.name for entry in os.scandir(folder / name) if _is_image(entry.name))
        if not inside:
            raise UserError(f"{folder / name} holds no image. {advice}")
        files += [f"{name}/{file}" for file in inside]
        counts.append(len(inside))
    order = mixed(len(files))
    return [files[place] for place in order], np.repeat(np.arange(len(classes)), counts)[order]


def mixed(count: int) -> np.ndarray:
    """A fixed order int [count] of images that come class by class.

    So that the first few, which NUM_IMAGES takes, are of many classes.
    """
    return np.random.RandomState(0).permutation(count)


def check_classes(folder: Path, classes: Sequence[str], advice: str) -> None:
    """Raise UserError unless `folder` holds a folder for each of `classes`."""
    present = set(class_folders(folder)) if folder.is_dir() else set()
    missing = [name for name in classes if name not in present]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(classes)} class folders, such as "
                        f"{missing[0]}. {advice}")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted."""
    return sorted(entry.name for entry in os.scandir(folder)
                  if entry.is_dir() and not entry.name.startswith("."))


def _is_image(name: str) -> bool:
    # macOS leaves a "._x.jpg" beside each x.jpg when it unpacks.
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def read_images(sources: Sequence[Source], prepare: Callable[[Image.Image], Image.Image],
                side: int = SIDE) -> np.ndarray:
    """Images uint8 [n,side,side,3], decoded in threads.

    Args:
        prepare: makes an RGB image as large as that.

    Raises:
        UserError: that names the source, if one is missing, no image, or of another size in the
            end.
    """
    def read(source: Source) -> np.ndarray:
        try:
            with source.open("rb") as file, Image.open(file) as image:
                pixels = np.asarray(prepare(image.convert("RGB")))
        except BAD_IMAGE as error:
            raise UserError(f"cannot read the image {source}: {error}") from error
        if pixels.shape != (side, side, 3):
            height, width, _ = pixels.shape
            raise UserError(f"the image {source} is {width}×{height}, not {side}×{side}")
        return pixels

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(read, sources)))


def resize_and_crop(image: Image.Image, *, resized: int = RESIZED, side: int = SIDE
                    ) -> Image.Image:
    """The central square after the shorter side became `resized`, as torchvision does it."""
    shorter = min(image.size)
    width, height = (resized * length // shorter for length in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return scaled.crop((left, top, left + side, top + side))


def describe_crop(resized: int) -> str:
    """What resize_and_crop did to a 224x224 image, for the record."""
    return f"shorter side resized to {resized} (bicubic), central {SIDE}×{SIDE}"
