"""make: write the corruptions of a clean data set to disk in the layout of the official files; or
CIFAR-10 as archives of JPEG files or in its Python version.

Files are written under another name and renamed, so they are complete or absent, and a killed
command can be resumed. Only a few images at a time are in memory.
"""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from tta_apm.atomic import TEMPORARY, atomic_path
from tta_apm.data import cifar, cifar_jpeg
from tta_apm.data.corruptions.constants import CORRUPTIONS, SEVERITIES
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.corruptions.functions import frost_source
from tta_apm.data.dataset import CLEAN, Clean, Domain
from tta_apm.data.official import declared, official_of
from tta_apm.data.prepare.python_version import PythonFiles
from tta_apm.data.prepare.zenodo import gigabytes
from tta_apm.data.provenance import Provenance, mark_folder
from tta_apm.errors import UserError, nearest, writing
from tta_apm.lock import locked
from tta_apm.registry import DATASETS

CHUNK = 64  # images
JPEG_QUALITY = 85  # as in the official script

T = TypeVar("T")


@dataclass(frozen=True)
class Making:
    """Domains of a corrupted data set to write to `folder`.

    Args:
        dataset: the data set that computes them.
        folder: where to write them.
        domains: sorted by corruption.
        files: path of each image below its domain's folder; empty if each corruption is one array.
    """

    dataset: Corrupted
    folder: Path
    domains: tuple[Domain, ...]
    files: Sequence[str] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset.labels) * len(self.domains)

    @property
    def done(self) -> str:
        """The message when all is written."""
        return (f"{self.folder} is complete; {self.dataset.name} is now read from there, and "
                "records say that it was made here.")

    def run(self) -> Iterator[int]:
        """Write the missing images; yield numbers of images that are done, `len(self)` in sum.

        Raises:
            UserError: if the folder holds other files, or cannot be written to.
        """
        provenance = Provenance(
            images=self.dataset.describe(Domain(self.dataset.name, CLEAN, 0)),
            constants=self.dataset.constants, frost=frost_source(self.dataset.frost_dir),
            stored=f"saved as JPEG of quality {JPEG_QUALITY}" if self.files else "")
        with _writing(self.folder), locked(self.folder, repr(provenance)):
            mark_folder(self.folder, provenance)
            yield from self._write_files() if self.files else self._write_arrays()

    def _write_arrays(self) -> Iterator[int]:
        """Write {corruption}.npy with the images at severity 1, then at severity 2, and so on."""
        labels = self.dataset.labels
        with atomic_path(self.folder / "labels.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.tile(labels.astype(np.uint8), len(SEVERITIES)))
        for corruption, domains in groupby(self.domains, lambda domain: domain.corruption):
            whole = self.folder / f"{corruption}.npy"
            if whole.is_file():
                yield len(labels) * len(SEVERITIES)
                continue
            image = self.dataset.images(self.domains[0], np.array([0]))[0]
            shape = (len(SEVERITIES) * len(labels), *image.shape)
            self._require_room(math.prod(shape))
            # Not memory-mapped, since a full disk would then kill the process with a signal.
            with atomic_path(whole) as temporary, open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {
                    "descr": "|u1", "fortran_order": False, "shape": shape})
                for domain in domains:
                    for chunk in _chunks(np.arange(len(labels))):
                        file.write(self.dataset.images(domain, chunk).tobytes())
                        yield len(chunk)

    def _require_room(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise UserError(f"{self.folder} has room for {gigabytes(free)}, but each corruption "
                            f"takes {gigabytes(size)}: make room, or give another --data-dir")

    def _write_files(self) -> Iterator[int]:
        """Write {corruption}/{severity}/{file} for each image.

        A severity's folder is renamed when it is complete.
        """
        with ThreadPoolExecutor() as pool:
            for domain in self.domains:
                whole = self.folder / domain.corruption / str(domain.severity)
                if whole.is_dir():
                    yield len(self.files)
                    continue
                part = whole.with_name(f"{domain.severity}{TEMPORARY}")
                for parent in {Path(file).parent for file in self.files}:
                    (part / parent).mkdir(parents=True, exist_ok=True)
                paths = [part / file for file in self.files]
                absent = np.array([not path.is_file() for path in paths]).nonzero()[0]
                yield len(paths) - len(absent)
                for chunk in _chunks(absent):
                    images = self.dataset.images(domain, chunk)
                    list(pool.map(_save_jpeg, images, [paths[index] for index in chunk]))
                    yield len(chunk)
                if hasattr(os, "sync"):  # once for all files, since syncing each one takes long
                    os.sync()
                part.rename(whole)


@dataclass(frozen=True)
class Archives:
    """The parts of CIFAR-10 to write to `folder` as archives of JPEG files.

    Args:
        folder: where to write them.
        parts: the images of "train" and "test".
    """

    folder: Path
    parts: dict[str, Clean]

    def __len__(self) -> int:
        """Number of images."""
        return sum(len(clean.labels) for clean in self.parts.values())

    @property
    def done(self) -> str:
        """The message when all is written."""
        names = " and ".join(cifar_jpeg.archive(self.folder, part).name for part in self.parts)
        return f"{self.folder} holds {names}, the archives of cifar10_jpeg and cifar10_jpeg_c."

    def run(self) -> Iterator[int]:
        """As Making.run; an existing archive is not changed."""
        with _writing(self.folder), locked(self.folder, "cifar10_jpeg"):
            for part, clean in self.parts.items():
                whole = cifar_jpeg.archive(self.folder, part)
                if whole.is_file():
                    yield len(clean.labels)
                    continue
                with atomic_path(whole) as temporary:
                    yield from cifar_jpeg.write(temporary, part, clean)


def _writing(folder: Path) -> AbstractContextManager[None]:
    return writing(f"to {folder}", "the same command goes on from there")


def prepare(name: str, *, data_dir: str, frost_dir: str | None, corruptions: Sequence[str],
            severities: Sequence[int], clean: str = "") -> Making | Archives | PythonFiles:
    """The files to write for the data set `name`; their `run()` writes them.

    Args:
        name: name of the data set.
        data_dir: folder of the data sets.
        frost_dir: see load_dataset.
        corruptions, severities: those to write; a file of CIFAR holds all severities.
        clean: the clean images to use, if the data set has a choice; "" for the official ones.

    Raises:
        UserError: if the data set cannot be made, does not have these options, or if the clean
            images are not found.
    """
    domains = tuple(Domain(name, corruption, severity) for corruption in corruptions
                    for severity in sorted(severities))
    if name in OTHER_LAYOUTS:
        choices = OTHER_LAYOUTS[name]
        return _choose(name, clean, choices)(Path(data_dir), frost_dir, domains)
    official = official_of(name) if name in DATASETS.names() else None
    if official is None:
        raise UserError(f"{name!r} has no official layout to make: "
                        f"{nearest(name, (*declared(), *OTHER_LAYOUTS))}")
    if official.in_arrays and {domain.severity for domain in domains} != set(SEVERITIES):
        raise UserError(f"a file of {official.folder} holds all severities: leave --severity away")
    images = _choose(name, clean, official.clean)(Path(data_dir))
    dataset = Corrupted(name, images, constants=official.constants, frost_dir=frost_dir)
    return Making(dataset, Path(data_dir) / official.folder, domains,
                  () if isinstance(images, Clean) else images.files)


def _choose(name: str, clean: str, choices: Mapping[str, T]) -> T:
    """The function that makes `name` from the images `clean`; "" for the first choice."""
    if clean and (clean not in choices or len(choices) == 1):
        raise UserError(f"--clean {clean}: {name} cannot be made of it"
                        + (f"; {nearest(clean, choices)}" if len(choices) > 1 else ""))
    return choices[clean or next(iter(choices))]


def _without_corruptions(name: str, frost_dir: str | None, domains: tuple[Domain, ...]) -> None:
    if frost_dir or len(domains) < len(CORRUPTIONS) * len(SEVERITIES):
        raise UserError(f"{name} is made without corruptions: leave --corruptions, --severity and "
                        "--frost-dir away")


def _python(which: cifar.Cifar, read: Callable[..., Clean], data_dir: Path, frost_dir: str | None,
            domains: tuple[Domain, ...], reuse: bool = True) -> PythonFiles:
    _without_corruptions(f"{which.name}_python", frost_dir, domains)
    return PythonFiles(which, data_dir, read(data_dir=str(data_dir), frost_dir=None), reuse)


def _cifar10_jpeg(data_dir: Path, frost_dir: str | None, domains: tuple[Domain, ...]) -> Archives:
    _without_corruptions("cifar10_jpeg", frost_dir, domains)
    test = cifar.cifar10(data_dir=str(data_dir), frost_dir=None)
    return Archives(data_dir, {"train": cifar.train_part(cifar.CIFAR10, data_dir), "test": test})


_Maker = Callable[[Path, "str | None", "tuple[Domain, ...]"], "Archives | PythonFiles"]
# Files that are not a corrupted data set, so that no data set declares them: CIFAR's Python version
# for other programs, and the archives of cifar10_jpeg; by the clean images they are made from.
OTHER_LAYOUTS: dict[str, dict[str, _Maker]] = {
    "cifar10_jpeg": {"cifar10": _cifar10_jpeg},
    "cifar10_python": {
        "cifar10": partial(_python, cifar.CIFAR10, cifar.cifar10),
        "cifar10_jpeg": partial(_python, cifar.CIFAR10, cifar_jpeg.cifar10_jpeg, reuse=False)},
    "cifar100_python": {"cifar100": partial(_python, cifar.CIFAR100, cifar.cifar100)},
}


def _chunks(indices: np.ndarray) -> list[np.ndarray]:
    return np.split(indices, range(CHUNK, len(indices), CHUNK)) if len(indices) else []


def _save_jpeg(pixels: np.ndarray, file: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    with atomic_path(file, durable=False) as temporary:
        temporary.write_bytes(content.getvalue())
