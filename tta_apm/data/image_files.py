"""ImageFiles: a data set of image files in class folders, decoded on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tta_apm.data.dataset import DataSet, Domain, Outputs, hash_files, refuse_corruption
from tta_apm.data.pictures import SUFFIXES, PictureFile, read_picture
from tta_apm.data.workers import in_threads
from tta_apm.errors import UserError

RESIZED = 256  # shorter side before the crop, in pixels
SIDE = 224  # of the crop, in pixels
# Files of Windows that are skipped, as hidden files are (macOS adds "._x.jpg" for each x.jpg).
OF_WINDOWS = {"Thumbs.db", "desktop.ini"}


class ImageFiles(DataSet):
    """Image files below a folder, resized and cropped to 224x224 as is usual for ImageNet.

    Args:
        name, class_names, template_set, outputs: see DataSet.
        folder: the folder that holds the files.
        files: their paths below it, in the order of the data set.
        labels: int64 [N].
        origin: description of the images, for the record.
        resized: shorter side before the crop, in pixels.
        as_seen: see read_picture.
    """

    def __init__(self, name: str, folder: Path, files: Sequence[str], labels: np.ndarray, *,
                 class_names: Sequence[str], template_set: str, origin: str,
                 outputs: Outputs | None = None, resized: int = RESIZED,
                 as_seen: bool = False) -> None:
        self.name = name
        self.folder = folder
        self.files = files
        self.labels = labels
        self.class_names = tuple(class_names)
        self.template_set = template_set
        self.origin = origin
        self.outputs = outputs
        self.resized = resized
        self.as_seen = as_seen

    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        return read_images([self.folder / self.files[index] for index in indices],
                           partial(resize_and_crop, resized=self.resized),
                           as_seen=self.as_seen)

    def check(self, domain: Domain) -> None:
        refuse_corruption(self.name, domain)

    def describe(self, domain: Domain) -> str:
        return f"{self.origin}, {describe_crop(self.resized)}"

    def signature(self, domain: Domain, count: int) -> str | None:
        return hash_files([self.folder / file for file in self.files[:count]], self.folder)


def list_images(folder: Path, classes: Sequence[str], advice: str, *, only_images: bool = False
                ) -> tuple[list[str], np.ndarray]:
    """The images in class folders, in a fixed order that mixes the classes.

    Args:
        folder: the folder that holds the class folders.
        classes: their names, in the order of the labels.
        advice: how to get the data set, for error messages.
        only_images: whether to refuse other files and folders in a class folder; hidden files and
            OF_WINDOWS are always skipped.

    Returns:
        The files as "class/file", and the position of each one's class in `classes`, int64 [N].

    Raises:
        UserError: if a class folder is missing, holds no image or, with `only_images`, other files.
    """
    check_classes(folder, classes, advice)
    files: list[str] = []
    counts = []
    for name in classes:
        visible = sorted(entry.name for entry in os.scandir(folder / name)
                         if not entry.name.startswith(".") and entry.name not in OF_WINDOWS)
        inside = [file for file in visible if Path(file).suffix.lower() in SUFFIXES]
        if not inside:
            raise UserError(f"{folder / name} holds no image. {advice}")
        if only_images and len(inside) < len(visible):
            others = sorted(set(visible).difference(inside))
            raise UserError(f"{folder / name} holds {len(others)} files or folders that are not "
                            f"read, e.g. {others[0]}: a class folder must hold images "
                            f"({' '.join(sorted(SUFFIXES))}) and nothing else. {advice}")
        files += [f"{name}/{file}" for file in inside]
        counts.append(len(inside))
    order = mixed(len(files))
    return [files[index] for index in order], np.repeat(np.arange(len(classes)), counts)[order]


def mixed(count: int) -> np.ndarray:
    """A fixed permutation int [count] for images that are sorted by class.

    With it, the first images, which NUM_IMAGES takes, are of many classes.
    """
    return np.random.RandomState(0).permutation(count)


def check_classes(folder: Path, classes: Sequence[str], advice: str) -> None:
    """Raise UserError unless `folder` holds a folder for each of `classes`."""
    present = set(class_folders(folder)) if folder.is_dir() else set()
    missing = [name for name in classes if name not in present]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(classes)} class folders, e.g. "
                        f"{missing[0]}. {advice}")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted."""
    return sorted(entry.name for entry in os.scandir(folder)
                  if entry.is_dir() and not entry.name.startswith("."))


def read_images(sources: Sequence[PictureFile], prepare: Callable[[Image.Image], Image.Image],
                side: int = SIDE, *, as_seen: bool = False) -> np.ndarray:
    """Images uint8 [n,side,side,3], decoded in threads.

    Args:
        sources: the pictures.
        prepare: resizes or crops an RGB image to the side `side`.
        side: in pixels.
        as_seen: see read_picture.

    Raises:
        UserError: as read_picture, and if `prepare` returns another size.
    """
    def read(source: PictureFile) -> np.ndarray:
        pixels = read_picture(source, lambda image: np.asarray(prepare(image)), as_seen=as_seen)
        if pixels.shape != (side, side, 3):
            height, width, _ = pixels.shape
            raise UserError(f"the image {source} is {width}×{height}, not {side}×{side}")
        return pixels

    return np.stack(in_threads(read, sources))


def resize_and_crop(image: Image.Image, *, resized: int = RESIZED, side: int = SIDE
                    ) -> Image.Image:
    """Resize the shorter side to `resized` and crop the central square, as torchvision does."""
    shorter = min(image.size)
    width, height = (resized * length // shorter for length in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return scaled.crop((left, top, left + side, top + side))


def describe_crop(resized: int) -> str:
    """The effect of resize_and_crop with the default side in words, for the record."""
    return f"shorter side resized to {resized} (bicubic), central {SIDE}×{SIDE}"
