"""`tta-apm islands`: draw the features of all columns (Section 5, Figure 3)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tta_apm.cli import OK
from tta_apm.commands import field_options
from tta_apm.errors import UserError
from tta_apm.fields.embedding import DIMENSIONS, EMBEDDINGS, embed

if TYPE_CHECKING:
    from torch import Tensor

    from tta_apm.fields.config import PretrainConfig
    from tta_apm.fields.pictures import Panel
    from tta_apm.fields.teachers import Teacher

EMBEDDING_SEED = 0
BAR = "squared error"


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = field_options.make_parser(
        "islands", "Draw the features of all columns, embedded in 1 or 3 dimensions: those of a "
        "trained student, or those of a new student at chosen steps of its test-time training.",
        "islands.png")
    field_options.add_images(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--student", type=Path, metavar="FILE", help=field_options.STUDENT_HELP)
    source.add_argument("--cfg", nargs="+", metavar=("FILE", "KEY VALUE"), help="a file of "
                        "configs/pretrain, with overrides: fit a new student to each image, "
                        "with the losses of the config")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 10, 50, 250], metavar="N",
                        help="with --cfg: the steps to draw (default: 0 10 50 250)")
    parser.add_argument("--embedding", choices=EMBEDDINGS, default="tsne",
                        help="how features become colours (default: tsne)")
    parser.add_argument("--dimensions", type=int, choices=DIMENSIONS, default=3,
                        help="of the embedding: 1 for shades from dark to light, 3 for colours "
                        "(default: 3)")
    parser.add_argument("--over", action="store_true", help="draw the islands over the image")
    parser.add_argument("--error-map", action="store_true",
                        help="with --student: add a map of the error of each column against the "
                        "teacher's feature there")
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw the islands of images, from a trained student or during test-time training."""
    rows = list(_from_config(options) if options.cfg else _from_student(options))
    from tta_apm.fields.pictures import draw_panels

    print(f"Wrote the islands to {draw_panels(rows, options.out, BAR)}.")
    return OK


def _from_student(options: argparse.Namespace) -> Iterator[list[Panel]]:
    """A row for each image: image, islands, reconstruction, error map."""
    from tta_apm.fields.field import error_map
    from tta_apm.fields.pictures import Panel
    from tta_apm.fields.teachers import load_teacher

    trained = field_options.load_student(options.student)
    grid, cfg, teacher = trained.student.grid, trained.cfg, None
    if options.error_map:
        if cfg is not None and cfg.needs_teacher:
            teacher = load_teacher(cfg, trained.student.code.device)
        if teacher is None:
            raise UserError(f"{options.student} names no teacher, so there is no error map: leave "
                            "out --error-map")
    for loaded in field_options.load_images(trained, options.images):
        features = loaded.field.features()
        title = f"islands ({options.embedding})"
        row = [Panel(loaded.name, loaded.pixels), _islands(features, loaded.pixels, options, title)]
        if trained.student.rgb is not None:
            row.append(Panel("reconstruction", loaded.field.colours().cpu().numpy()))
        if teacher is not None:
            _, wanted = teacher.targets(loaded.image[None], grid)
            error = error_map(features, wanted[0])
            row.append(Panel(f"error, mean {error.mean():.2g}",
                             error.view(grid, grid).cpu().numpy()))
        yield [panel._replace(aspect=loaded.aspect) for panel in row]


def _from_config(options: argparse.Namespace) -> Iterator[list[Panel]]:
    """Two rows for each image: islands at each of the steps, and error maps below them."""
    from tta_apm import config
    from tta_apm.fields.config import from_config, keys

    if min(options.steps) < 0:
        raise UserError(f"--steps {min(options.steps)}: steps are counted from 0")
    cfg = from_config(config.load_keys(options.cfg[0], options.cfg[1:], keys()))
    # Imported here: torch takes seconds, and an error of the config is reported first.
    from tta_apm.device import choose_device
    from tta_apm.fields.photos import aspect_of, find_image, read_image
    from tta_apm.fields.teachers import load_teacher

    device = choose_device(cfg.device)
    teacher = load_teacher(cfg, device) if cfg.needs_teacher else None
    for name in options.images:
        path = find_image(name)
        image, aspect = read_image(path, cfg.image_size).to(device), aspect_of(path)
        for row in _strip(path.name, image, cfg, teacher, options):
            yield [panel._replace(aspect=aspect) for panel in row]


def _strip(name: str, image: Tensor, cfg: PretrainConfig, teacher: Teacher | None,
           options: argparse.Namespace) -> Iterator[list[Panel]]:
    """Fit a new student to an image [3,S,S]; a row of islands, and one of errors if it has a
    teacher."""
    """Fit a new student to an image [3,S,S]; a row of islands, and one of errors if it has a
    teacher."""
    from tta_apm.fields.overfit import overfit
    from tta_apm.fields.pictures import Panel

    pixels = image.permute(1, 2, 0).cpu().numpy()
    islands, errors = [Panel(name, pixels)], []
    for snapshot in overfit(cfg, teacher, image, options.steps):
        title = f"step {snapshot.step}\nloss {snapshot.loss:.2g}"
        islands.append(_islands(snapshot.field.features(), pixels, options, title))
        if snapshot.error is not None:
            error = snapshot.error.view(cfg.grid, cfg.grid).cpu().numpy()
            errors.append(Panel(f"mean error {error.mean():.2g}", error))
    yield islands
    if errors:
        yield [Panel("", np.ones((1, 1, 3))), *errors]


def _islands(features: Tensor, pixels: np.ndarray, options: argparse.Namespace, title: str
             ) -> Panel:
    """A panel of features [L,D], embedded and painted, over the image if --over is given."""
    """A panel of features [L,D], embedded and painted, over the image if --over is given."""
    from tta_apm.fields.pictures import Panel, paint

    side = isqrt(len(features))
    embedded = embed(features, options.embedding, options.dimensions, EMBEDDING_SEED)
    return Panel(title, paint(embedded.reshape(side, side, -1)),
                 beneath=pixels if options.over else None)
