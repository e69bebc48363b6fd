"""official: the layout of a corrupted data set's official files, as the data set declares it.

`tta-apm data get` downloads these files from Zenodo; `tta-apm data make` computes them from clean
images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tta_apm.errors import UserError
from tta_apm.registry import DATASETS

if TYPE_CHECKING:
    from tta_apm.data.dataset import Clean
    from tta_apm.data.image_files import ImageFiles

T = TypeVar("T")


class Archive(NamedTuple):
    """A tar file of a record, and the folders in it."""

    file: str
    folders: tuple[str, ...]


class ZenodoRecord(NamedTuple):
    """A data set on Zenodo."""

    number: str
    folder: str  # below DATA_DIR, into which the archives are unpacked
    archives: tuple[Archive, ...]


@dataclass(frozen=True)
class Official:
    """The official files of a corrupted data set: their layout and how to get them.

    Attributes:
        folder: folder below DATA_DIR that holds the corruptions.
        constants: "cifar" or "imagenet", the benchmark whose severities are used.
        clean: by name, functions that read the clean images from DATA_DIR; the first is the
            default.
        in_arrays: whether one file holds all severities of a corruption; else each image is a file.
        zenodo: where they can be downloaded; None for nowhere.
    """

    folder: str
    constants: str
    clean: Mapping[str, Callable[[Path], Clean | ImageFiles]]
    in_arrays: bool = False
    zenodo: ZenodoRecord | None = None


def official(files: Official) -> Callable[[T], T]:
    """Decorator that declares a data set's official files on the function that loads it."""
    def declare(load: T) -> T:
        load.official = files  # type: ignore[attr-defined]
        return load
    return declare


def official_of(name: str) -> Official | None:
    """The official files that the data set `name` declares; None if it declares none.

    Raises:
        UserError: for an unknown name.
    """
    return getattr(DATASETS.load(name), "official", None)


def declared() -> dict[str, Official]:
    """The official files of all data sets that declare some, by the data set's name."""
    found = {}
    for name in DATASETS.names():
        with suppress(UserError):  # a third-party package that cannot be imported
            if (files := official_of(name)) is not None:
                found[name] = files
    return found


def registered(name: str) -> Callable[[Path], Clean]:
    """A function that reads the data set `name` from DATA_DIR."""
    def read(data_dir: Path) -> Clean:
        clean: Clean = DATASETS.load(name)(data_dir=str(data_dir), frost_dir=None)
        return clean
    return read
