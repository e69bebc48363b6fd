"""Class order: the class folders of a data set in the order of their labels."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tta_apm.data.image_files import class_folders
from tta_apm.data.lists import read_list
from tta_apm.errors import UserError

LIST = "classnames.txt"  # file in the root folder with the name of one class folder per line


class ClassOrder(NamedTuple):
    """Class folders in the order of their labels."""

    folders: tuple[str, ...]
    text: str  # how they are ordered, for the record

    @property
    def names(self) -> list[str]:
        """The names of the classes in prompts."""
        return [folder.replace("_", " ") for folder in self.folders]


def read_order(root: Path) -> ClassOrder:
    """The class folders of `root` in the order of LIST or, without it, sorted as in torchvision.

    Raises:
        UserError: if there is no folder, if LIST does not name each of them once, or if two have
            the same name in prompts.
    """
    present = class_folders(root) if root.is_dir() else []
    if not present:
        raise UserError(f"DATASET folder: DATA_DIR {root} must hold a folder of images per class")
    file = root / LIST
    order = _listed(file, present) if file.is_file() else ClassOrder(
        tuple(present), f"sorted by name{_where_conventions_differ(present)}")
    name, count = Counter(order.names).most_common(1)[0]
    if count > 1:
        same = [folder for folder, other in zip(order.folders, order.names) if other == name]
        raise UserError(f"DATASET folder: the class folders {' and '.join(same)} of {root} are "
                        f"all called {name!r} in prompts: rename or merge them")
    return order


def _listed(file: Path, present: list[str]) -> ClassOrder:
    listed = read_list(file, "it names each class folder on a line, in the order of the labels")
    for wrong, what in ((set(present).difference(listed), "lacks the class folder"),
                        (set(listed).difference(present), "names a folder that is not there:"),
                        ({name for name in listed if listed.count(name) > 1}, "names twice")):
        if wrong:
            raise UserError(f"{file} {what} {min(wrong)}: it must name each of the {len(present)} "
                            "class folders once, in the order of the labels, or be deleted")
    return ClassOrder(tuple(listed), f"ordered by {LIST}")


def _where_conventions_differ(folders: list[str]) -> str:
    """Two neighbours that other programs would sort in the opposite order; "" if there are none."""
    for sort_key in (_natural, str.lower):
        for first, second in zip(folders, folders[1:]):
            if sort_key(first) > sort_key(second):  # type: ignore[operator]
                return f" ({first!r} before {second!r})"
    return ""


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which 2 comes before 10."""
    return [(int(part[:18]), "") if part.isdecimal() else (0, part)
            for part in re.findall(r"\d+|\D+", name)]
