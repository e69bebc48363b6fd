"""The classes of ImageNet and of its 200-class variants, and RobustBench's 5,000 images.

The lists are part of timm, robustbench and open_clip; the first two packages are not imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tta_apm.errors import UserError

NUM_CLASSES = 1000
NUM_ROBUSTBENCH = 5000


def wnids() -> tuple[str, ...]:
    """The WordNet ids of the 1000 classes in the order of their indices, which is alphabetical."""
    return _lines("timm", "data/_info/imagenet_synsets.txt", NUM_CLASSES)


def wnids_a() -> tuple[str, ...]:
    """The WordNet ids of the 200 classes of ImageNet-A, in the same order."""
    return _lines("timm", "data/_info/imagenet_a_synsets.txt", 200)


def wnids_r() -> tuple[str, ...]:
    """The WordNet ids of the 200 classes of ImageNet-R, in the same order."""
    return _lines("timm", "data/_info/imagenet_r_synsets.txt", 200)


def robustbench_images() -> tuple[str, ...]:
    """RobustBench's 5,000 of the 50,000 validation images, as "wnid/file", in its order.

    They are not balanced: 997 classes with 1 to 12 images each.
    """
    return _lines("robustbench", "helper_files/imagenet_test_image_ids.txt", NUM_ROBUSTBENCH)


def class_names() -> tuple[str, ...]:
    """The names of the 1000 classes for CLIP, from open_clip, which takes seconds to import."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    return tuple(IMAGENET_CLASSNAMES)


def _lines(package: str, name: str, count: int) -> tuple[str, ...]:
    """The lines of a text file in an installed package, which is not imported.

    Raises:
        UserError: if the file is missing or does not have `count` lines.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, name)
        if file.is_file():
            lines = tuple(file.read_text(encoding="utf-8").split())
            if len(lines) == count:
                return lines
    raise UserError(f"the installed {package} has no complete {name}: pip install "
                    f"--force-reinstall --no-deps {package}")
