"""ImageNet's validation set, ImageNet-C, -A, -R, -V2 and -Sketch; and any folder of class folders.

Labels are determined by the names of class folders, never by their position in a listing.
ImageNet-A and -R have 200 classes, with labels 0 to 199 in the order of the 1000; from a classifier
of 1000 classes, only the outputs of these 200 are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tta_apm.data import imagenet_classes
from tta_apm.data.class_order import read_order
from tta_apm.data.corruptions.constants import SEVERITIES
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import DataSet, Domain, Outputs, hash_files
from tta_apm.data.image_files import ImageFiles, check_classes, list_images, read_images
from tta_apm.data.official import Archive, Official, ZenodoRecord, official
from tta_apm.data.provenance import how_to_finish, read_mark
from tta_apm.errors import UserError

TEMPLATE_SET = "imagenet"


class Variant(NamedTuple):
    """A data set in class folders: its folder, classes and number of images."""

    name: str
    title: str
    folders: tuple[str, ...]  # possible folders below DATA_DIR; the first that exists is used
    classes: Callable[[], Sequence[str]]  # class folders, in the order of the labels
    num_images: int
    advice: str  # how to get it, for error messages

    def __call__(self, *, data_dir: str, frost_dir: str | None) -> ImageFiles:
        """All of its images; `frost_dir` is unused, as in all but ImageNet-C."""
        folder = _find(Path(data_dir), self.folders)
        if folder is None:
            raise UserError(_absent(self.name, self.title, data_dir, self.folders, self.advice))
        classes = self.classes()
        files, labels = list_images(folder, classes, self.advice)
        if len(files) != self.num_images:
            raise UserError(f"{folder} holds {len(files)} images, but {self.title} has "
                            f"{self.num_images}: unpack it again. {self.advice}")
        names, outputs = imagenet_classes.class_names(), None
        origin = self.title
        if len(classes) < imagenet_classes.NUM_CLASSES:
            index_of = {wnid: index for index, wnid in enumerate(imagenet_classes.wnids())}
            outputs = Outputs(len(index_of), tuple(index_of[wnid] for wnid in classes))
            names = tuple(names[index] for index in outputs.indices)
            origin += f", {len(classes)} classes"
        return ImageFiles(self.name, folder, files, labels, class_names=names,
                          template_set=TEMPLATE_SET, origin=origin, outputs=outputs)


imagenet = Variant(
    "imagenet", "ImageNet's validation set",
    ("imagenet2012/val", "ILSVRC/val", "ImageNet/val", "imagenet/val", "imagenet/images/val",
     "val"), imagenet_classes.wnids, 50_000,
    "Get ILSVRC2012_img_val.tar from https://image-net.org and sort its images into class "
    "folders n01440764, ..., as torchvision's ImageNet does")
imagenet_a = Variant(
    "imagenet_a", "ImageNet-A",
    ("imagenet-a", "imagenet/imagenet-a", "imagenet-adversarial/imagenet-a"),
    imagenet_classes.wnids_a, 7_500,
    "Get imagenet-a.tar of https://github.com/hendrycks/natural-adv-examples and unpack it "
    "there")
imagenet_r = Variant(
    "imagenet_r", "ImageNet-R",
    ("imagenet-r", "imagenet/imagenet-r", "imagenet-rendition/imagenet-r"),
    imagenet_classes.wnids_r, 30_000,
    "Get imagenet-r.tar of https://github.com/hendrycks/imagenet-r and unpack it there")
imagenet_v2 = Variant(
    "imagenet_v2", "ImageNet-V2 (matched frequency)",
    ("imagenet-v2/imagenetv2-matched-frequency-format-val",
     "imagenet/imagenetv2-matched-frequency-format-val",
     "imagenetv2-matched-frequency-format-val",
     "imagenetv2/imagenetv2-matched-frequency-format-val"),
    # Its folders are class indices: "10" is class 10, though it is third when sorted by name.
    lambda: [str(index) for index in range(imagenet_classes.NUM_CLASSES)], 10_000,
    "Get imagenetv2-matched-frequency.tar.gz of https://github.com/modestyachts/ImageNetV2 "
    "and unpack it there")
imagenet_sketch = Variant(
    "imagenet_sketch", "ImageNet-Sketch",
    ("ImageNet-Sketch/sketch", "ImageNet-Sketch", "imagenet-sketch/images"),
    imagenet_classes.wnids, 50_889,
    "Get ImageNet-Sketch.zip of https://github.com/HaohanWang/ImageNet-Sketch and unpack it "
    "there")

C_FOLDERS = ("ImageNet-C", "ILSVRC/imagenet-c")
C_RECORD = "2235448"  # on Zenodo
C_ADVICE = (f"Get the tar files of https://zenodo.org/records/{C_RECORD} and unpack them there, so "
            "that there is ImageNet-C/fog/5/n01440764 (`tta-apm data get imagenet_c` does both)")


def _official(chosen: Callable[[], Sequence[str] | None], zenodo: ZenodoRecord | None = None
              ) -> Official:
    """The official files of ImageNet-C, computed from the validation images `chosen`."""
    return Official(C_FOLDERS[0], "imagenet",
                    {"imagenet": lambda data_dir: validation(str(data_dir), chosen())},
                    zenodo=zenodo)


@official(_official(lambda: imagenet_classes.robustbench_images(), ZenodoRecord(
    C_RECORD, C_FOLDERS[0], (
        Archive("noise.tar", ("gaussian_noise", "shot_noise", "impulse_noise")),
        Archive("blur.tar", ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")),
        Archive("weather.tar", ("snow", "frost", "fog", "brightness")),
        Archive("digital.tar", ("contrast", "elastic_transform", "pixelate",
                                "jpeg_compression"))))))
def imagenet_c(*, data_dir: str, frost_dir: str | None) -> DataSet:
    """RobustBench's 5,000 images of the official ImageNet-C, or computed from the validation set.
    """
    return _corrupted("imagenet_c", data_dir, frost_dir, imagenet_classes.robustbench_images())


@official(_official(lambda: None))
def imagenet_c_50k(*, data_dir: str, frost_dir: str | None) -> DataSet:
    """All 50,000 images of the official ImageNet-C, or computed from the validation set."""
    return _corrupted("imagenet_c_50k", data_dir, frost_dir, None)


def folder_of_classes(*, data_dir: str, frost_dir: str | None) -> ImageFiles:
    """Any images: DATA_DIR holds a folder per class, named after it. `frost_dir` is unused."""
    root = Path(data_dir)
    order = read_order(root)
    files, labels = list_images(root, order.folders, "Each folder there is a class",
                                only_images=True)
    return ImageFiles("folder", root, files, labels, template_set="single",
                      class_names=order.names, as_seen=True,
                      origin=f"class folders of {root.resolve().name}, {order.text}, upright by "
                             "EXIF")


class ImagenetC(DataSet):
    """The published ImageNet-C: 224x224 files in {corruption}/{severity}/{wnid}/.

    Args:
        name, class_names: see DataSet.
        folder: the folder that holds the corruptions' folders.
        files: paths below a severity's folder, in the order of the data set.
        clean: returns the same images of the validation set, or raises UserError.
    """

    template_set = TEMPLATE_SET
    on_disk = SEVERITIES

    def __init__(self, name: str, folder: Path, files: Sequence[str], class_names: Sequence[str],
                 clean: Callable[[], ImageFiles]) -> None:
        self.name = name
        self.folder = folder
        self.files = files
        self.class_names = tuple(class_names)
        self.labels = _labels(files)
        self.clean = cache(clean)  # listing 50,000 files takes a while
        self.classes = sorted({file.split("/")[0] for file in files})
        self.advice = how_to_finish(folder, name) or C_ADVICE

    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        if domain.severity == 0:
            return self.clean().images(domain, indices)
        folder = self._folder(domain)
        return read_images([folder / self.files[index] for index in indices], _as_it_is)

    def check(self, domain: Domain) -> None:
        if domain.severity == 0:
            self.clean()
        else:
            check_classes(self._folder(domain), self.classes, self.advice)

    def verify(self, domain: Domain) -> None:
        super().verify(domain)
        if domain.severity:
            folder = self._folder(domain)
            present = {f"{name}/{file}" for name in self.classes
                       for file in os.listdir(folder / name)}
            lost = [file for file in self.files if file not in present]
            if lost:
                raise UserError(f"{folder} lacks {len(lost)} of {len(self.files)} images, e.g. "
                                f"{lost[0]}. {self.advice}")

    def describe(self, domain: Domain) -> str:
        if domain.severity == 0:
            return self.clean().describe(domain)
        provenance = read_mark(self.folder)
        if provenance is None:
            return f"official ImageNet-C, {len(self.files)} images"
        return provenance.describe(domain)

    def signature(self, domain: Domain, count: int) -> str | None:
        if domain.severity == 0:
            return self.clean().signature(domain, count)
        folder = self._folder(domain)
        return hash_files([folder / file for file in self.files[:count]], folder)

    def _folder(self, domain: Domain) -> Path:
        return self.folder / domain.corruption / str(domain.severity)


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _corrupted(name: str, data_dir: str, frost_dir: str | None, chosen: Sequence[str] | None
               ) -> DataSet:
    """ImageNet-C with the images `chosen`; None for all."""
    def clean() -> ImageFiles:
        return validation(data_dir, chosen)

    folder = _find(Path(data_dir), C_FOLDERS)
    if folder is not None:
        files = _list_official(folder) if chosen is None else chosen
        return ImagenetC(name, folder, files, imagenet_classes.class_names(), clean)
    if _find(Path(data_dir), imagenet.folders) is None:
        raise UserError(_absent(name, "ImageNet-C", data_dir, C_FOLDERS, C_ADVICE)
                        + "; or put ImageNet's validation set into imagenet2012/val, from which it "
                        "is made on the fly")
    return Corrupted(name, clean(), constants="imagenet", frost_dir=frost_dir)


def validation(data_dir: str, chosen: Sequence[str] | None) -> ImageFiles:
    """The images `chosen` of the validation set, as "wnid/file" in that order; None for all."""
    whole = imagenet(data_dir=data_dir, frost_dir=None)
    if chosen is None:
        return whole
    lost = set(chosen).difference(whole.files)
    if lost:
        raise UserError(f"{whole.folder} lacks {min(lost)}. {imagenet.advice}")
    return ImageFiles(whole.name, whole.folder, chosen, _labels(chosen),
                      class_names=whole.class_names, template_set=TEMPLATE_SET,
                      origin=f"{whole.origin}, {len(chosen)} images")


def _list_official(folder: Path) -> list[str]:
    """The images that every corruption and severity of ImageNet-C has."""
    inside = next((path for path in sorted(folder.glob("*/[1-5]")) if path.is_dir()), folder)
    files, _ = list_images(inside, imagenet_classes.wnids(), C_ADVICE)
    wanted = imagenet.num_images
    if len(files) != wanted:
        raise UserError(f"{inside} holds {len(files)} images instead of {wanted}: unpack it again. "
                        f"{C_ADVICE}")
    return files


def _labels(files: Sequence[str]) -> np.ndarray:
    """Class indices int64 [N] of paths "wnid/file"."""
    index_of = {wnid: index for index, wnid in enumerate(imagenet_classes.wnids())}
    return np.array([index_of[file.split("/")[0]] for file in files], np.int64)


def _find(data_dir: Path, folders: Sequence[str]) -> Path | None:
    return next((data_dir / name for name in folders if (data_dir / name).is_dir()), None)


def _absent(name: str, title: str, data_dir: str, folders: Sequence[str], advice: str) -> str:
    looked_for = ", ".join(folders)
    return (f"DATASET {name}: {title} is not below DATA_DIR {data_dir} (looked for {looked_for}). "
            f"{advice}")
