"""CIFAR-10 as JPEG files of quality 75 in two archives, and the same under the 15 corruptions.

A small copy of CIFAR-10 (20 MB): DATA_DIR holds cifar10_train.tar.gz and cifar10_test.tar.gz, whose
members are train/CLASS/0000.jpg and test/CLASS/0000.jpg, numbered in the official order.
`tta-apm data make cifar10_jpeg` makes both from the official CIFAR-10. Figures on it are not
comparable with published ones, since its pixels were compressed; so it has another name.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from tta_apm.data.cifar import CIFAR10_CLASSES, IMAGE, NUM_TEST, NUM_TRAIN, TEMPLATE_SET
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import Clean, DataSet
from tta_apm.data.pictures import InMemory, read_picture
from tta_apm.errors import UserError, corrupt

QUALITY = 75
MAX_MEMBER = 2 ** 16  # bytes
MAX_UNPACKED = 2 ** 29  # bytes of an archive, four times those of the official training images
ADVICE = "its members must be 32×32 images, e.g. test/airplane/0000.jpg"


def cifar10_jpeg(*, data_dir: str, frost_dir: str | None) -> Clean:
    """The 10,000 test images; `frost_dir` is unused."""
    return _read(Path(data_dir), "test", NUM_TEST, "cifar10_jpeg",
                 source=lambda: train_part(data_dir))


def cifar10_jpeg_c(*, data_dir: str, frost_dir: str | None) -> Corrupted:
    """The test images under the 15 corruptions with CIFAR-C's constants."""
    clean = cifar10_jpeg(data_dir=data_dir, frost_dir=frost_dir)
    return Corrupted("cifar10_jpeg_c", clean, constants="cifar", frost_dir=frost_dir)


def train_part(data_dir: str) -> Clean:
    """The 50,000 training images."""
    return _read(Path(data_dir), "train", NUM_TRAIN, "cifar10_jpeg_train")


def archive(folder: Path, part: str) -> Path:
    """The archive of "train" or "test"."""
    return folder / f"cifar10_{part}.tar.gz"


def write(file: Path, part: str, clean: Clean) -> Iterator[int]:
    """Write an archive of images class by class, and yield the number of images of each class.

    Equal images give equal bytes with the same version of Pillow: headers hold no time or owner.
    """
    with open(file, "wb") as stream, gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed, \
            tarfile.open(fileobj=packed, mode="w") as tar:
        for label, name in enumerate(CIFAR10_CLASSES):
            chosen = (clean.labels == label).nonzero()[0]
            for number, index in enumerate(chosen):
                content = io.BytesIO()
                Image.fromarray(clean.pixels[index]).save(content, "JPEG", quality=QUALITY)
                member = tarfile.TarInfo(f"{part}/{name}/{number:04}.jpg")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
            yield len(chosen)


def _read(folder: Path, part: str, num_images: int, name: str,
          source: Callable[[], DataSet] | None = None) -> Clean:
    file = archive(folder, part)
    if not file.is_file():
        raise UserError(f"DATASET {name}: file not found: {file}; DATA_DIR names its folder, and "
                        "`tta-apm data make cifar10_jpeg` makes it from the official CIFAR-10")
    images, labels = [], []
    try:
        for member, content in _members(file):
            images.append(_decode(content, f"{file}: {member}"))
            labels.append(CIFAR10_CLASSES.index(member.parent.name))
            if len(images) > num_images:
                raise UserError(f"{file} holds more than {num_images} images; {ADVICE}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise corrupt(file, error) from error
    if len(images) != num_images:
        raise UserError(f"{file} holds {len(images)} images instead of {num_images}; {ADVICE}")
    # The archive is sorted by class. Shuffled, so that NUM_IMAGES takes images of many classes.
    mixed = np.random.RandomState(0).permutation(num_images)
    return Clean(name, np.stack(images)[mixed], np.array(labels, np.int64)[mixed],
                 CIFAR10_CLASSES, TEMPLATE_SET, source)


def _members(file: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The images of an archive, which is unpacked as a stream and up to MAX_UNPACKED bytes only."""
    with _Limited(file) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.suffix != ".jpg" or path.parent.name not in CIFAR10_CLASSES:
                continue
            content = tar.extractfile(member)
            if content is None or member.size > MAX_MEMBER:
                raise UserError(f"{file}: {member.name} is not a JPEG file of 32×32; {ADVICE}")
            yield path, content.read()


class _Limited(gzip.GzipFile):
    """A gzip file that raises UserError after MAX_UNPACKED bytes."""

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if self.tell() > MAX_UNPACKED:
            raise UserError(f"{self.name} unpacks to more than {MAX_UNPACKED} bytes; {ADVICE}")
        return content


def _decode(content: bytes, where: str) -> np.ndarray:
    pixels = read_picture(InMemory(where, content), np.asarray)
    if pixels.shape != IMAGE:
        raise UserError(f"the image {where} is {pixels.shape[1]}×{pixels.shape[0]}; {ADVICE}")
    return pixels
