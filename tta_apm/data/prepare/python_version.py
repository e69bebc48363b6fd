"""python_version: CIFAR's test images in the Python version, for programs that use torchvision.

torchvision's class CIFAR10 reads DATA_DIR/cifar10/cifar-10-batches-py/. ttab also needs the
corrupted images in DATA_DIR/cifar10_c/, which is made a link to CIFAR-10-C/.
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
from tta_apm.data.provenance import Provenance, mark_folder, read_mark
from tta_apm.errors import writing
from tta_apm.lock import locked

PROTOCOL = 2  # pickle protocol of the official files


@dataclass(frozen=True)
class PythonFiles:
    """The test images `clean` to write as the Python version of `which` below `data_dir`.

    Args:
        reuse: whether to use existing files instead: those in their place, or those of the official
            archive directly in `data_dir`, to which a link is made.
    """

    which: Cifar
    data_dir: Path
    clean: Clean
    reuse: bool = True

    def __len__(self) -> int:
        """Number of images."""
        return len(self.clean.labels)

    @property
    def folder(self) -> Path:
        return self.data_dir / self.which.python.folders[-1]

    @property
    def done(self) -> str:
        """The message when all is written."""
        name = self.which.name
        link = self.data_dir / f"{name}_c"
        beside = f", and {link} the corrupted ones" if link.is_dir() else (
            f"; there is no {self.data_dir / self.which.corrupted[0]} yet: `tta-apm data make "
            f"{name}_c` makes it, and this command then links to it")
        checksums = "" if read_mark(self.folder) is None else (
            " The files differ from the official ones, so torchvision's checksums refuse them; "
            "`tta-apm host` says so and uses them all the same.")
        return f"{self.folder} holds the test images{beside}.{checksums}"

    def run(self) -> Iterator[int]:
        """Write the missing files; yield the number of images.

        Raises:
            UserError: if the folder holds other files, or cannot be written to.
        """
        official = self.data_dir / self.which.python.folders[0]
        test = self.which.python.test
        if self.reuse and (self.folder / test).is_file():
            pass
        elif self.reuse and (official / test).is_file():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _link(self.folder, Path("..", official.name))
        else:
            self._write()
        link = self.data_dir / f"{self.which.name}_c"
        if (self.data_dir / self.which.corrupted[0]).is_dir() and not link.exists():
            _link(link, Path(self.which.corrupted[0]))
        yield len(self)

    def _write(self) -> None:
        how = self.clean.describe(Domain(self.clean.name, CLEAN, 0))
        provenance = Provenance(images=how, constants="", frost="", stored="")
        with writing(f"to {self.folder}"), locked(self.folder, repr(provenance)):
            mark_folder(self.folder, provenance)
            names = [text.replace(" ", "_") for text in self.which.class_names]
            self._save(self.which.python.meta, {self.which.python.names_key: names})
            pixels = self.clean.pixels.transpose(0, 3, 1, 2).reshape(len(self), -1)
            self._save(self.which.python.test, {
                "data": np.ascontiguousarray(pixels),
                self.which.python.label_key: self.clean.labels.tolist()})

    def _save(self, name: str, content: dict[str, object]) -> None:
        atomic_write(self.folder / name, pickle.dumps(content, protocol=PROTOCOL))


def _link(link: Path, target: Path) -> None:
    with writing(link):
        link.symlink_to(target, target_is_directory=True)
