"""DataSet: images with labels; Domain: a data set under one corruption and severity."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tta_apm.errors import UserError

CLEAN = "clean"


class Domain(NamedTuple):
    """A data set under one corruption and severity; the clean one is ("clean", 0)."""

    dataset: str
    corruption: str
    severity: int

    def __str__(self) -> str:
        return CLEAN if self.severity == 0 else f"{self.corruption}-{self.severity}"


class Outputs(NamedTuple):
    """Which outputs of a classifier with more classes are the classes of a data set."""

    total: int  # number of outputs of the classifier
    indices: tuple[int, ...]  # of the data set's classes, in the order of the labels


class DataSet(ABC):
    """Images and labels in a fixed order.

    Attributes:
        name: as in configs and records.
        class_names: K names, in the order of the labels.
        template_set: name of the prompt templates of its ensemble.
        templates: its own templates, each with one `{}`; None if it has none.
        labels: int64 [N].
        outputs: which outputs of its classifiers are its classes, if they have others too; else
            None.
        on_disk: the severities whose images are files; others are computed on the fly.
    """

    name: str
    class_names: tuple[str, ...]
    template_set: str
    templates: tuple[str, ...] | None = None
    labels: np.ndarray
    outputs: Outputs | None = None
    on_disk: tuple[int, ...] = (0,)

    @abstractmethod
    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        """Images uint8 [n,H,W,3] at positions `indices` int [n] under `domain`."""

    def check(self, domain: Domain) -> None:
        """Raise UserError if the images of `domain` are not found; a quick check."""

    def verify(self, domain: Domain) -> None:
        """As check(), but look for every file, and read the first and the last image."""
        self.check(domain)
        self.images(domain, np.array([0, len(self.labels) - 1]))

    def describe(self, domain: Domain) -> str:
        """How the images of `domain` were made, for the record."""
        return self.name

    def signature(self, domain: Domain, count: int) -> str | None:
        """A quickly computed identifier of the first `count` images of `domain`.

        Equal identifiers mean equal pixels. Different ones, e.g. of copied files, do not mean
        different pixels; the pixels themselves have to be compared. None if there is no quick way.
        """
        return None

    def source(self) -> DataSet | None:
        """The clean training set of its backbones; None if there is none."""
        return None


class Clean(DataSet):
    """A data set in memory that has the clean domain only.

    Args:
        name, class_names, template_set: see DataSet.
        pixels: images uint8 [N,H,W,3].
        labels: int64 [N].
        source: computes DataSet.source; None if there is none.
        origin: how the images were made, for the record; "" for the name.
    """

    def __init__(self, name: str, pixels: np.ndarray, labels: np.ndarray,
                 class_names: Sequence[str], template_set: str,
                 source: Callable[[], DataSet | None] | None = None, origin: str = "") -> None:
        self.name = name
        self.pixels = pixels
        self.labels = labels
        self.class_names = tuple(class_names)
        self.template_set = template_set
        self._source = source
        self.origin = origin

    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        return self.pixels[indices]

    def describe(self, domain: Domain) -> str:
        return self.origin or self.name

    def check(self, domain: Domain) -> None:
        refuse_corruption(self.name, domain)

    def signature(self, domain: Domain, count: int) -> str | None:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hash_text(hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest())

    def source(self) -> DataSet | None:
        return self._source() if self._source else None


def refuse_corruption(name: str, domain: Domain) -> None:
    """Raise UserError unless `domain` is clean, for data sets without other domains."""
    if domain.severity:
        raise UserError(f"DATASET {name} has no corruptions: set SEVERITY [0], or CORRUPT true to "
                        "make them on the fly")


def hash_pixels(image: np.ndarray) -> bytes:
    """Hash of one image uint8 [H,W,3], 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def hash_images(hashes: Iterable[bytes]) -> str:
    """Hash of a set of images, given their hash_pixels in any order and with repetitions."""
    # Trailing zeros are removed, as in the records of version 0.1.0.
    distinct = sorted({value.rstrip(b"\0") for value in hashes})
    return hashlib.sha256(b"".join(distinct)).hexdigest()[:16]


def hash_files(files: Iterable[Path], folder: Path) -> str:
    """Hash of files by their names below `folder`, sizes and times; their contents are not read.

    A missing file is no error here; reading it raises one.
    """
    def line(file: Path) -> str:
        name = os.path.relpath(file, folder)
        try:
            state = file.stat()
        except OSError:
            return f"{name} absent"
        return f"{name} {state.st_size} {state.st_mtime_ns}"

    return hash_text(*map(line, files))


def hash_text(*lines: str) -> str:
    """Short sha256 of lines of text, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]
