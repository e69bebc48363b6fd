"""CIFAR-10 as JPEG files of quality 75 in two archives, and the same under the 15 corruptions.

A small copy of CIFAR-10 (20 MB): DATA_DIR holds cifar10_train.tar.gz and cifar10_test.tar.gz, whose
members are train/CLASS/0000.jpg and test/CLASS/0000.jpg, numbered in the official order.
`tta-apm data make cifar10_jpeg` makes both of the official CIFAR-10. It is not the benchmark that
others report: its pixels went through JPEG, so it has a name of its own.
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
from tta_apm.data.corrupted import Corrupted
from tta_apm.data.dataset import Clean, DataSet
from tta_apm.data.image_files import BAD_IMAGE
from tta_apm.errors import UserError

QUALITY = 75
ADVICE = "members are test/airplane/0000.jpg and the like, of 32×32"


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
    """Write an archive of images class by class; yields how many each class has.

    Equal images give equal bytes, with the same Pillow: no header holds a time or an owner.
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
        raise UserError(f"DATASET {name}: there is no file {file}; DATA_DIR names its folder, and "
                        "`tta-apm data make cifar10_jpeg` makes it of the official CIFAR-10 there")
    images, labels = [], []
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.suffix != ".jpg" or path.parent.name not in CIFAR10_CLASSES:
                    continue
                content = tar.extractfile(member)
                assert content is not None  # only directories and links have none
                images.append(_decode(content.read(), f"{file}: {member.name}"))
                labels.append(CIFAR10_CLASSES.index(path.parent.name))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} is not a whole archive: {error}") from error
    if len(images) != num_images:
        raise UserError(f"{file} holds {len(images)} images instead of {num_images}; {ADVICE}")
    # Sorted by class in the archive; mixed, so that the first few are of many classes.
    mixed = np.random.RandomState(0).permutation(num_images)
    return Clean(name, np.stack(images)[mixed], np.array(labels, np.int64)[mixed],
                 CIFAR10_CLASSES, TEMPLATE_SET, source)


def _decode(content: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except BAD_IMAGE as error:
        raise UserError(f"cannot read the image {where}: {error}") from error
    if pixels.shape != IMAGE:
        raise UserError(f"the image {where} is {pixels.shape[1]}×{pixels.shape[0]}; {ADVICE}")
    return pixels
