"""Options of the commands on fields: a trained student, images, and the picture to write."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tta_apm.commands import options as shared

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tta_apm.fields.checkpoint import Trained
    from tta_apm.fields.field import Field

STUDENT_HELP = ("a student.safetensors that `tta-apm pretrain` wrote, or the authors' published "
                "model_15.pth")
IMAGE_HELP = "a file, or sklearn/china.jpg and sklearn/flower.jpg, which scikit-learn ships"


class LoadedImage(NamedTuple):
    """An image, and the field that a student gives for it."""

    name: str
    image: Tensor  # [3,S,S] in [0,1]
    aspect: float  # height / width of the photograph
    field: Field

    @property
    def pixels(self) -> np.ndarray:
        """The image, [S,S,3] in [0,1]."""
        return self.image.permute(1, 2, 0).cpu().numpy()


def make_parser(command: str, description: str, out: str) -> argparse.ArgumentParser:
    """A parser with --out, whose default is results/`out`."""
    parser = shared.make_parser(command, description)
    parser.add_argument("--out", type=Path, default=Path("results", out), metavar="FILE",
                        help=f"the picture, .png or .svg (default: results/{out})")
    return parser


def add_images(into: argparse.ArgumentParser) -> None:
    """Add the images, at least one."""
    into.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGE_HELP)


def add_student(into: argparse.ArgumentParser) -> None:
    """Add --student, which is required."""
    into.add_argument("--student", type=Path, required=True, metavar="FILE", help=STUDENT_HELP)


def load_student(file: Path) -> Trained:
    """The student in `file`, on the GPU if there is one. UserError if it cannot be read."""
    from tta_apm.device import choose_device
    from tta_apm.fields import checkpoint

    return checkpoint.load_student(file, choose_device("auto"))


def load_images(trained: Trained, images: Sequence[str]) -> Iterator[LoadedImage]:
    """Load images by name and compute their fields."""
    from tta_apm.fields.field import field_of
    from tta_apm.fields.photos import aspect_of, find_image, read_image

    device = trained.student.code.device
    for name in images:
        path = find_image(name)
        image = read_image(path, trained.preprocess.image_size).to(device)
        field = field_of(trained.student, trained.preprocess(image[None])[0])
        yield LoadedImage(path.name, image, aspect_of(path), field)
