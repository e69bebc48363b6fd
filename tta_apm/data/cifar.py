"""CIFAR-10, CIFAR-100, their corrupted versions CIFAR-10-C and CIFAR-100-C, and CIFAR-10.1.

DATA_DIR holds the folders of their archives: cifar-10-batches-bin/, cifar-100-binary/, CIFAR-10-C/,
CIFAR-100-C/ and CIFAR-10.1/. If the binary version of CIFAR is not found, the Python version is
read: cifar-10-batches-py/ or cifar-100-python/, which may be one folder further down, where some
other packages expect it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tta_apm.data.arrays import check_range, open_array, read_labels
from tta_apm.data.cifar_python import read_batch
from tta_apm.data.corruptions.constants import SEVERITIES
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import CLEAN, Clean, DataSet, Domain, hash_files
from tta_apm.data.official import Archive, Official, ZenodoRecord, official, registered
from tta_apm.data.provenance import how_to_finish, read_mark
from tta_apm.errors import UserError

TEMPLATE_SET = "cifar"

SIDE = 32
IMAGE = (SIDE, SIDE, 3)
NUM_TEST = 10_000
NUM_TRAIN = 50_000
NUM_SEVERITIES = 5
NUM_CIFAR10_1 = 2_000  # in version 6

# openai/CLIP, data/prompts.md.
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                   "truck")
CIFAR100_CLASSES = tuple(
    "apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, "
    "bridge, bus, butterfly, camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, "
    "cloud, cockroach, couch, crab, crocodile, cup, dinosaur, dolphin, elephant, flatfish, forest, "
    "fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn mower, leopard, lion, lizard, "
    "lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, oak tree, orange, orchid, "
    "otter, palm tree, pear, pickup truck, pine tree, plain, plate, poppy, porcupine, possum, "
    "rabbit, raccoon, ray, road, rocket, rose, sea, seal, shark, shrew, skunk, skyscraper, snail, "
    "snake, spider, squirrel, streetcar, sunflower, sweet pepper, table, tank, telephone, "
    "television, tiger, tractor, train, trout, tulip, turtle, wardrobe, whale, willow tree, wolf, "
    "woman, worm".split(", "))


class PythonVersion(NamedTuple):
    """The files of CIFAR's Python version."""

    folders: tuple[str, ...]  # possible folders below DATA_DIR
    test: str
    train: tuple[str, ...]
    label_key: str
    meta: str
    names_key: str  # key of the class names in `meta`


class Cifar(NamedTuple):
    """The properties in which CIFAR-10 and CIFAR-100 differ."""

    name: str
    class_names: tuple[str, ...]
    folder: str  # of the binary version
    archive: str  # of the binary version
    test: str
    train: tuple[str, ...]
    label_bytes: int  # before each image's pixels; the last one is the label
    corrupted: tuple[str, ...]  # possible folders of the corrupted version
    record: str  # number of the corrupted version's record on Zenodo
    python: PythonVersion


CIFAR10 = Cifar("cifar10", CIFAR10_CLASSES, "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
                "test_batch.bin", tuple(f"data_batch_{number}.bin" for number in range(1, 6)), 1,
                ("CIFAR-10-C", "cifar10_c"), "2535967",
                PythonVersion(("cifar-10-batches-py", "cifar10/cifar-10-batches-py"), "test_batch",
                              tuple(f"data_batch_{number}" for number in range(1, 6)), "labels",
                              "batches.meta", "label_names"))
CIFAR100 = Cifar("cifar100", CIFAR100_CLASSES, "cifar-100-binary", "cifar-100-binary.tar.gz",
                 "test.bin", ("train.bin",), 2, ("CIFAR-100-C", "cifar100_c"), "3555552",
                 PythonVersion(("cifar-100-python", "cifar100/cifar-100-python"), "test",
                               ("train",), "fine_labels", "meta", "fine_label_names"))


def _official(cifar: Cifar, *clean: str) -> Official:
    """The official files of its corrupted version, computed from one of the data sets `clean`."""
    folder = cifar.corrupted[0]
    return Official(folder, "cifar", {name: registered(name) for name in clean}, in_arrays=True,
                    zenodo=ZenodoRecord(cifar.record, "", (Archive(f"{folder}.tar", (folder,)),)))


def cifar10(*, data_dir: str, frost_dir: str | None) -> Clean:
    """The 10,000 test images of CIFAR-10; `frost_dir` is unused."""
    return _clean(CIFAR10, Path(data_dir))


def cifar100(*, data_dir: str, frost_dir: str | None) -> Clean:
    """The 10,000 test images of CIFAR-100 with their 100 fine labels; `frost_dir` is unused."""
    return _clean(CIFAR100, Path(data_dir))


@official(_official(CIFAR10, "cifar10", "cifar10_jpeg"))
def cifar10_c(*, data_dir: str, frost_dir: str | None) -> DataSet:
    """The official CIFAR-10-C if its folder exists, else CIFAR-10 corrupted on the fly."""
    return _corrupted(CIFAR10, Path(data_dir), frost_dir)


@official(_official(CIFAR100, "cifar100"))
def cifar100_c(*, data_dir: str, frost_dir: str | None) -> DataSet:
    """The official CIFAR-100-C if its folder exists, else CIFAR-100 corrupted on the fly."""
    return _corrupted(CIFAR100, Path(data_dir), frost_dir)


def cifar10_1(*, data_dir: str, frost_dir: str | None) -> Clean:
    """CIFAR-10.1, version 6: 2,000 new images of CIFAR-10's classes; `frost_dir` is unused."""
    files = [f"cifar10.1_v6_{part}.npy" for part in ("data", "labels")]
    inside = [Path(data_dir, folder) for folder in ("CIFAR-10.1", "")]
    folder = next((folder for folder in inside if (folder / files[0]).is_file()), inside[0])
    advice = ("Get cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy from the folder datasets of "
              f"https://github.com/modestyachts/CIFAR-10.1 and put them into {inside[0]}")
    pixels = open_array(folder / files[0], (NUM_CIFAR10_1, *IMAGE), advice)
    labels = read_labels(folder / files[1], [NUM_CIFAR10_1], len(CIFAR10_CLASSES), advice)
    return Clean("cifar10_1", pixels, labels, CIFAR10_CLASSES, TEMPLATE_SET,
                 source=lambda: _train(CIFAR10, Path(data_dir)))


class CifarC(DataSet):
    """The published CIFAR-10-C or CIFAR-100-C: one memory-mapped file per corruption.

    Each file holds the 10,000 test images at severity 1, then at severity 2, and so on.

    Args:
        cifar: the data set of which it is the corrupted version.
        folder: folder of the files.
        clean: the clean test images; None if they are not found.

    Raises:
        UserError: if the labels are missing or invalid.
    """

    template_set = TEMPLATE_SET
    on_disk = SEVERITIES

    def __init__(self, cifar: Cifar, folder: Path, clean: Clean | None) -> None:
        self.name = f"{cifar.name}_c"
        self.class_names = cifar.class_names
        self.cifar = cifar
        self.folder = folder
        self.clean = clean
        self.advice = how_to_finish(folder, self.name) or _advice(cifar, folder.parent)
        if clean is not None and not (folder / "labels.npy").is_file():
            self.labels = clean.labels  # some copies have no labels.npy
        else:
            self.labels = read_labels(folder / "labels.npy", [NUM_TEST * NUM_SEVERITIES, NUM_TEST],
                                      len(self.class_names), self.advice)[:NUM_TEST]

    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        if domain.severity == 0:
            return self._clean().images(domain, indices)
        first = (domain.severity - 1) * NUM_TEST
        return np.asarray(self._file(domain)[first + indices])

    def check(self, domain: Domain) -> None:
        if domain.severity == 0:
            self._clean()
        else:
            self._file(domain)

    def describe(self, domain: Domain) -> str:
        if domain.severity == 0:
            return self.clean.describe(domain) if self.clean else self.cifar.name
        provenance = read_mark(self.folder)
        return provenance.describe(domain) if provenance else f"official {self.cifar.corrupted[0]}"

    def signature(self, domain: Domain, count: int) -> str | None:
        if domain.severity == 0:
            return self._clean().signature(domain, count)
        return hash_files([self.folder / f"{domain.corruption}.npy"], self.folder)

    def source(self) -> DataSet | None:
        return _train(self.cifar, self.folder.parent)

    def _file(self, domain: Domain) -> np.ndarray:
        return open_array(self.folder / f"{domain.corruption}.npy",
                          (NUM_TEST * NUM_SEVERITIES, *IMAGE), self.advice)

    def _clean(self) -> Clean:
        # If it was not found, this raises the error that says how to get it.
        return self.clean or _clean(self.cifar, self.folder.parent)


def _corrupted(cifar: Cifar, data_dir: Path, frost_dir: str | None) -> DataSet:
    has_clean = (data_dir / cifar.folder).is_dir() or _python_folder(cifar, data_dir) is not None
    for folder in cifar.corrupted:
        if (data_dir / folder).is_dir():
            return CifarC(cifar, data_dir / folder,
                          _clean(cifar, data_dir) if has_clean else None)
    if not has_clean:
        raise UserError(
            f"DATASET {cifar.name}_c: folder not found: {data_dir / cifar.corrupted[0]}. "
            f"{_advice(cifar, data_dir)}, or {cifar.archive} from "
            "https://www.cs.toronto.edu/~kriz/cifar.html, which is then corrupted on the fly; "
            "DATA_DIR names the folder")
    return Corrupted(f"{cifar.name}_c", _clean(cifar, data_dir), constants="cifar",
                     frost_dir=frost_dir)


def _advice(cifar: Cifar, data_dir: Path) -> str:
    return (f"Get {cifar.corrupted[0]}.tar from https://zenodo.org/records/{cifar.record} and "
            f"unpack it in {data_dir} (`tta-apm data get {cifar.name}_c` does both)")


def _clean(cifar: Cifar, data_dir: Path) -> Clean:
    pixels, labels = _read(cifar, data_dir, train=False)
    mark = read_mark(_python_folder(cifar, data_dir) or data_dir / cifar.folder)
    return Clean(cifar.name, pixels, labels, cifar.class_names, TEMPLATE_SET,
                 source=lambda: _train(cifar, data_dir),
                 origin=mark.describe(Domain(cifar.name, CLEAN, 0)) if mark else "")


def _train(cifar: Cifar, data_dir: Path) -> Clean | None:
    """The 50,000 training images, None if they are not found."""
    python = _python_folder(cifar, data_dir)
    first = data_dir / cifar.folder / cifar.train[0] if python is None \
        else python / cifar.python.train[0]
    return train_part(cifar, data_dir) if first.is_file() else None


def train_part(cifar: Cifar, data_dir: Path) -> Clean:
    """The 50,000 training images."""
    pixels, labels = _read(cifar, data_dir, train=True)
    return Clean(f"{cifar.name}_train", pixels, labels, cifar.class_names, TEMPLATE_SET)


def _python_folder(cifar: Cifar, data_dir: Path) -> Path | None:
    """The folder of the Python version; None if it is not found or the binary version is."""
    if (data_dir / cifar.folder).is_dir():
        return None
    return next((data_dir / folder for folder in cifar.python.folders
                 if (data_dir / folder).is_dir()), None)


def _read(cifar: Cifar, data_dir: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N,32,32,3] and labels int64 [N] of the version that is found."""
    python = _python_folder(cifar, data_dir)
    names = (cifar.train if train else (cifar.test,)) if python is None else (
        cifar.python.train if train else (cifar.python.test,))
    num_images = NUM_TRAIN // len(names) if train else NUM_TEST
    read = _read_binary if python is None else _read_python
    parts = [read(cifar, (python or data_dir / cifar.folder) / name, num_images) for name in names]
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, SIDE, SIDE)
    return (np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
            np.concatenate([labels for _, labels in parts]))


def _read_binary(cifar: Cifar, file: Path, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N,3072] and labels int64 [N] of a file of the binary version."""
    advice = (f"Get {cifar.archive}, the binary version, from "
              f"https://www.cs.toronto.edu/~kriz/cifar.html and unpack it in {file.parent.parent}")
    size = num_images * (cifar.label_bytes + SIDE * SIDE * 3)
    if not file.is_file():
        raise UserError(f"file not found: {file}. {advice}")
    if file.stat().st_size != size:
        raise UserError(f"{file} is incomplete: it has {file.stat().st_size} bytes instead of "
                        f"{size}. {advice}")
    table = np.fromfile(file, np.uint8).reshape(num_images, -1)
    labels = table[:, cifar.label_bytes - 1].astype(np.int64)
    check_range(file, labels, len(cifar.class_names), advice)
    return table[:, cifar.label_bytes:], labels


def _read_python(cifar: Cifar, file: Path, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N,3072] and labels int64 [N] of a file of the Python version."""
    archive = cifar.archive.replace("binary", "python")
    advice = (f"Get {archive}, the Python version, from https://www.cs.toronto.edu/~kriz/cifar.html"
              f" and unpack it in {file.parent.parent}")
    pixels, labels = read_batch(file, num_images, SIDE * SIDE * 3, cifar.python.label_key, advice)
    check_range(file, labels, len(cifar.class_names), advice)
    return pixels, labels
