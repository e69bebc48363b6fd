"""official: the official files of a corrupted data set, as the set declares them.

`tta-apm data get` downloads them from Zenodo, `tta-apm data make` makes the same of clean images.
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
    """A data set on Zenodo, and the folder below DATA_DIR that its archives are unpacked in."""

    number: str
    folder: str
    archives: tuple[Archive, ...]


@dataclass(frozen=True)
class Official:
    """How the official files of a corrupted data set are laid out, and come to be.

    Attributes:
        folder: that holds the corruptions, below DATA_DIR.
        constants: "cifar" or "imagenet", whose severities they have.
        clean: what reads the images that are corrupted, from DATA_DIR; by name, where there is a
            choice, the first is the default.
        in_arrays: whether a file holds all severities of a corruption; else each image is a file.
        zenodo: None for what cannot be downloaded.
    """

    folder: str
    constants: str
    clean: Mapping[str, Callable[[Path], Clean | ImageFiles]]
    in_arrays: bool = False
    zenodo: ZenodoRecord | None = None


def official(files: Official) -> Callable[[T], T]:
    """Decorator of the function of a data set: declare its official files."""
    def declare(load: T) -> T:
        load.official = files  # type: ignore[attr-defined]
        return load
    return declare


def official_of(name: str) -> Official | None:
    """What the data set `name` declares. UserError for an unknown name."""
    return getattr(DATASETS.load(name), "official", None)


def declared() -> dict[str, Official]:
    """What data sets declare, by their names."""
    found = {}
    for name in DATASETS.names():
        with suppress(UserError):  # a package of others that does not load
            if (files := official_of(name)) is not None:
                found[name] = files
    return found


def registered(name: str) -> Callable[[Path], Clean]:
    """What reads the data set `name` from DATA_DIR."""
    def read(data_dir: Path) -> Clean:
        clean: Clean = DATASETS.load(name)(data_dir=str(data_dir), frost_dir=None)
        return clean
    return read
