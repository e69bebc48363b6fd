"""python_version: CIFAR's test images in the Python version, for programs that ask torchvision.

They find DATA_DIR/cifar10/cifar-10-batches-py/ by torchvision's class CIFAR10; ttab also wants the
corrupted images beside it as DATA_DIR/cifar10_c/, which becomes a link to CIFAR-10-C/.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tta_apm.atomic import atomic_write
from tta_apm.data.cifar import Cifar
from tta_apm.data.dataset import CLEAN, Clean, Domain
from tta_apm.data.provenance import Provenance, mark_folder
from tta_apm.errors import writing
from tta_apm.lock import locked

PROTOCOL = 2  # as the official files have
META = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}


@dataclass(frozen=True)
class PythonFiles:
    """The test images `clean` as the Python version of `which` below `data_dir`."""

    which: Cifar
    data_dir: Path
    clean: Clean

    def __len__(self) -> int:
        """Number of images."""
        return len(self.clean.labels)

    @property
    def folder(self) -> Path:
        return self.data_dir / self.which.python.folders[-1]

    @property
    def done(self) -> str:
        """What to say when it is."""
        name = self.which.name
        link = self.data_dir / f"{name}_c"
        beside = f", and {link} the corrupted ones" if link.is_dir() else (
            f"; there is no {self.data_dir / self.which.corrupted[0]} yet: `tta-apm data make "
            f"{name}_c` makes it, and this command then links to it")
        return (f"{self.folder} holds the test images{beside}. The files are not torchvision's to "
                "the byte, so its checksums refuse them: `tta-apm host` says so and goes on.")

    def run(self) -> Iterator[int]:
        """Write what is missing; yields the number of images.

        Raises:
            UserError: if the folder holds other files, or cannot be written to.
        """
        how = self.clean.describe(Domain(self.clean.name, CLEAN, 0))
        provenance = Provenance(images=how, constants="", frost="", stored="")
        with writing(f"to {self.folder}"), locked(self.folder, repr(provenance)):
            mark_folder(self.folder, provenance)
            name, key = META[self.which.name]
            names = [text.replace(" ", "_") for text in self.which.class_names]
            self._save(name, {key: names})
            pixels = self.clean.pixels.transpose(0, 3, 1, 2).reshape(len(self), -1)
            self._save(self.which.python.test, {
                "data": np.ascontiguousarray(pixels),
                self.which.python.label_key: self.clean.labels.tolist()})
        link = self.data_dir / f"{self.which.name}_c"
        if (self.data_dir / self.which.corrupted[0]).is_dir() and not link.exists():
            with writing(link):
                link.symlink_to(self.which.corrupted[0], target_is_directory=True)
        yield len(self)

    def _save(self, name: str, content: dict[str, object]) -> None:
        atomic_write(self.folder / name, pickle.dumps(content, protocol=PROTOCOL))
