"""Shards: data sets in the webdataset layout that CLIP_benchmark publishes, named wds/NAME.

    classnames.txt  zeroshot_classification_templates.txt  test/nshards.txt  test/0.tar  1.tar ...

A sample is an image (.jpg, .png or .webp) and its label (.cls) under one key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tta_apm.data import hub, imagenet_classes
from tta_apm.data.dataset import DataSet, Domain, Outputs, hash_files, hash_text, refuse_corruption
from tta_apm.data.image_files import SIDE, describe_crop, mixed, read_images, resize_and_crop
from tta_apm.data.lists import read_list
from tta_apm.data.pictures import picture_size
from tta_apm.data.tar_members import Member, members
from tta_apm.errors import UserError

NAME = re.compile(r"wds(/[A-Za-z0-9][A-Za-z0-9_.-]*)+")
IMAGES = {"jpeg", "jpg", "png", "webp"}
CLASSES, TEMPLATES, COUNT = (
    "classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt")

# Target of downloads if DATA_DIR is a URL: DATA_DIR's default, where later runs find them.
DOWNLOADS = Path("data")

AGAIN = "get it again"
NUM_PROBES = 8  # images whose sizes are checked for small squares of one size


class Shards(DataSet):
    """Images in tar archives, with their own class names and templates.

    If all images are small squares of one size (e.g. CIFAR's), they are not resized; others are
    resized and cropped to 224x224 as in CLIP.

    Args:
        name, class_names, templates, labels, outputs: see DataSet.
        sources: the images, in the order of the data set.

    Raises:
        UserError: if one of the images whose sizes are checked cannot be read.
    """

    def __init__(self, name: str, sources: Sequence[Member], labels: np.ndarray, *,
                 class_names: Sequence[str], templates: Sequence[str],
                 outputs: Outputs | None) -> None:
        self.name = self.template_set = name
        self.sources = sources
        self.labels = labels
        self.class_names = tuple(class_names)
        self.templates = tuple(templates)
        self.outputs = outputs
        self.side = _side(sources)

    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        return read_images([self.sources[index] for index in indices],
                           partial(resize_and_crop, resized=self.side, side=self.side), self.side)

    def check(self, domain: Domain) -> None:
        refuse_corruption(self.name, domain)

    def signature(self, domain: Domain, count: int) -> str | None:
        archives = dict.fromkeys(source.archive for source in self.sources[:count])
        members = [f"{source.name} {source.offset} {source.size}" for source in
                   self.sources[:count]]
        folder = next(iter(archives)).parent
        return hash_text(hash_files(sorted(archives), folder), *members)

    def describe(self, domain: Domain) -> str:
        size = describe_crop(SIDE) if self.side == SIDE else f"{self.side}×{self.side}"
        return f"test shards of {self.name}, {size}"


def shards(*, data_dir: str, frost_dir: str | None, name: str = "wds") -> Shards:
    """The data set `name`, wds/..., below DATA_DIR; if that is a URL, it is downloaded from there.

    Its folder has the name of the data set or of its repository, e.g. wds/vtab/dtd or
    wds_vtab-dtd. `frost_dir` is unused.

    Raises:
        UserError: if it is not found, cannot be downloaded or is incomplete.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"DATASET {name!r} names no data set: write wds/NAME, e.g. wds/vtab/dtd")
    folder = _download(name, data_dir) if "://" in data_dir else _find(name, Path(data_dir))
    class_names = read_list(folder / CLASSES, AGAIN)
    samples = [sample for archive in _archives(folder)
               for sample in _samples(archive, len(class_names))]
    if not samples:
        raise UserError(f"{folder / 'test'} holds no image")
    order = mixed(len(samples))
    return Shards(name, [samples[index][0] for index in order],
                  np.array([samples[index][1] for index in order], np.int64),
                  class_names=class_names, templates=_templates(folder / TEMPLATES),
                  outputs=_outputs(class_names))


def _find(name: str, data_dir: Path) -> Path:
    repository = hub.repository_name(name)
    folders = (name, repository, f"wds/{repository}")
    for folder in folders:
        if (data_dir / folder).is_dir():
            return data_dir / folder
    raise UserError(f"DATASET {name} is not below DATA_DIR {data_dir} (looked for "
                    f"{', '.join(folders)}). Clone {hub.HUB}/{repository} there with git lfs, or "
                    f"download it to {DOWNLOADS}/ with DATA_DIR {hub.HUB}")


def _download(name: str, base: str) -> Path:
    """Download the missing files of a data set; return its folder."""
    source, folder = hub.repository(name, base), DOWNLOADS / name
    for file in (CLASSES, TEMPLATES, COUNT):
        hub.download(source, file, folder)
    for archive in _archives(folder):
        hub.download(source, f"test/{archive.name}", folder)
    return folder


def _templates(file: Path) -> list[str]:
    """The templates in a file, with its placeholder {c} replaced by {}."""
    templates = read_list(file, AGAIN)
    for template in templates or [""]:
        if template.count("{c}") != 1 or re.search("[{}]", template.replace("{c}", "")):
            raise UserError(f"{file}: the template {template!r} must have one {{c}} for the name "
                            "of the class and no other braces")
    return [template.replace("{c}", "{}") for template in templates]


def _archives(folder: Path) -> list[Path]:
    text = " ".join(read_list(folder / COUNT, AGAIN))
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) == 0:
        raise UserError(f"{folder / COUNT} must hold the number of archives, not {text[:40]!r}")
    return [folder / f"test/{number}.tar" for number in range(int(text))]


def _samples(archive: Path, num_classes: int) -> list[tuple[Member, int]]:
    """The images of an archive and their labels, in the archive's order.

    Raises:
        UserError: if the archive is not found, incomplete or not an archive, or if a sample lacks
            its image or a label below `num_classes`.
    """
    if not archive.is_file():
        raise UserError(f"file not found: {archive}, though {archive.with_name('nshards.txt')} "
                        f"includes it: {AGAIN}")
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    for member in members(archive):
        key, suffix = split_name(member.name)
        if suffix == "cls":
            labels[key] = _label(member, num_classes)
        elif suffix.lower() in IMAGES:
            if key in images:
                raise UserError(f"{archive} holds two images under the key {key}")
            images[key] = member
    for key in images.keys() ^ labels.keys():
        lost = ".cls" if key in images else "image"
        raise UserError(f"{archive}: the sample {key} has no {lost}")
    return [(member, labels[key]) for key, member in images.items()]


def split_name(name: str) -> tuple[str, str]:
    """The key and the suffix of a file in a shard, by the rule of the webdataset library.

    The suffix starts after the first dot of the file's name. It is "" for a name without a dot or
    with a leading dot.
    """
    found = re.match(r"((?:.*/)?[^.]+)\.([^/]*)$", name)
    return (found[1], found[2]) if found else (name, "")


def _label(member: Member, num_classes: int) -> int:
    with member.open("rb") as file:
        text = file.read(20).decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= num_classes:
        raise UserError(f"{member}: a label is a number from 0 to {num_classes - 1}, not {text!r}")
    return int(text)


def _outputs(class_names: Sequence[str]) -> Outputs | None:
    """The outputs of an ImageNet classifier for ImageNet-A or -R; None for other data sets."""
    for wnids in (imagenet_classes.wnids_a(), imagenet_classes.wnids_r()):
        if len(class_names) == len(wnids):
            names, every = imagenet_classes.class_names(), imagenet_classes.wnids()
            indices = tuple(every.index(wnid) for wnid in wnids)
            if [names[index] for index in indices] == class_names:
                return Outputs(len(every), indices)
    return None


def _side(sources: Sequence[Member]) -> int:
    """The common side in pixels of small square images; SIDE for other images."""
    probes = np.linspace(0, len(sources) - 1, NUM_PROBES).astype(int)
    sizes = {picture_size(sources[index]) for index in probes}
    width, height = sizes.pop()
    return width if not sizes and width == height < SIDE else SIDE
