"""Nine fine-grained data sets on CoOp's test splits: flowers, textures, pets, actions and others.

Their folders have the layout of CoOp (Zhou et al., IJCV 2022), with its split_zhou_*.json files,
which list "train", "val" and "test" as [image, label, class name]. FGVC-Aircraft has its own lists.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tta_apm.data.image_files import SIDE, ImageFiles, mixed
from tta_apm.errors import UserError

# As in CLIP, TPT and CoOp: the shorter side is resized to the size of the crop.
RESIZED = SIDE

GUIDE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


class Layout(NamedTuple):
    """A data set: its folders and its numbers of classes and images."""

    name: str
    title: str
    folder: str  # below DATA_DIR
    images: str  # folder of the images in it
    split: str  # file in it that lists the test images
    num_classes: int
    num_images: int  # of the test split
    template_set: str

    @property
    def advice(self) -> str:
        """How to get it, for error messages."""
        return (f"Get its images and {self.split}, and lay them out, as {GUIDE} says under "
                f"{self.title}")

    def __call__(self, *, data_dir: str, frost_dir: str | None) -> ImageFiles:
        """The test split; `frost_dir` is unused.

        Raises:
            UserError: if a folder, the split or one of its images is not found, or if the split is
                incomplete.
        """
        folder = Path(data_dir) / self.folder
        if not folder.is_dir():
            raise UserError(f"DATASET {self.name}: {self.title} is not below DATA_DIR {data_dir} "
                            f"(looked for {self.folder}). {self.advice}")
        file = folder / self.split
        try:
            split = read_split(file) if file.suffix == ".json" else read_variants(file)
        except FileNotFoundError as error:
            raise UserError(f"file not found: {error.filename}. {self.advice}") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{file} is not a split of {self.title} ({error!r}). {self.advice}") \
                from error
        found = len(split.class_names), len(split.files)
        if found != (self.num_classes, self.num_images):
            raise UserError(f"{file} lists {found[1]} test images of {found[0]} classes, but "
                            f"{self.title} has {self.num_images} of {self.num_classes}. "
                            f"{self.advice}")
        images = folder / self.images
        missing = [image for image in split.files if not (images / image).is_file()]
        if missing:
            raise UserError(f"{images} lacks {len(missing)} of {self.num_images} test images, such "
                            f"as {missing[0]}. {self.advice}")
        order = mixed(len(split.files))
        return ImageFiles(self.name, images, [split.files[index] for index in order],
                          np.array(split.labels, np.int64)[order], class_names=split.class_names,
                          template_set=self.template_set, resized=RESIZED,
                          origin=f"{self.title}, CoOp's test split")


class Split(NamedTuple):
    """The test images of a data set."""

    files: list[str]  # below the folder of the images
    labels: list[int]
    class_names: tuple[str, ...]


def read_split(file: Path) -> Split:
    """The "test" part of a split_zhou_*.json, with the class names of all its parts.

    Raises:
        OSError, ValueError, LookupError, TypeError: if it is not found or has another format.
    """
    parts = json.loads(file.read_text(encoding="utf-8"))
    names: dict[int, str] = {}
    for image, label, name in [*parts["train"], *parts["val"], *parts["test"]]:
        if names.setdefault(int(label), str(name)) != name:
            raise ValueError(f"class {label} is {names[int(label)]!r} and, at {image}, {name!r}")
    return Split([str(image) for image, _, _ in parts["test"]],
                 [int(label) for _, label, _ in parts["test"]],
                 tuple(names[label].replace("_", " ") for label in range(len(names))))


def read_variants(file: Path) -> Split:
    """The test split in FGVC-Aircraft's images_variant_test.txt; variants.txt lists the classes.

    Raises:
        OSError, ValueError: if one of the files is not found or has another format.
    """
    names = file.with_name("variants.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines()]
    return Split([f"{image}.jpg" for image, _ in lines], [names.index(name) for _, name in lines],
                 tuple(names))


flowers102 = Layout("flowers102", "Flowers102", "oxford_flowers", "jpg",
                    "split_zhou_OxfordFlowers.json", 102, 2_463, "flowers102")
dtd = Layout("dtd", "DTD", "dtd", "images", "split_zhou_DescribableTextures.json", 47, 1_692, "dtd")
oxford_pets = Layout("oxford_pets", "OxfordPets", "oxford_pets", "images",
                     "split_zhou_OxfordPets.json", 37, 3_669, "oxford_pets")
# The middle frame of each video.
ucf101 = Layout("ucf101", "UCF101", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", 101,
                3_783, "ucf101")
caltech101 = Layout("caltech101", "Caltech101", "caltech-101", "101_ObjectCategories",
                    "split_zhou_Caltech101.json", 100, 2_465, "single")
food101 = Layout("food101", "Food101", "food-101", "images", "split_zhou_Food101.json", 101, 30_300,
                 "food101")
sun397 = Layout("sun397", "SUN397", "sun397", "SUN397", "split_zhou_SUN397.json", 397, 19_850,
                "single")
fgvc_aircraft = Layout("fgvc_aircraft", "FGVCAircraft", "fgvc_aircraft", "images",
                       "images_variant_test.txt", 100, 3_333, "fgvc_aircraft")
eurosat = Layout("eurosat", "EuroSAT", "eurosat", "2750", "split_zhou_EuroSAT.json", 10, 8_100,
                 "eurosat")
