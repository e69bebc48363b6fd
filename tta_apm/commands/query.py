"""`tta-apm query`: compute single columns of a student, at given positions."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tta_apm.cli import OK
from tta_apm.commands import field_options
from tta_apm.commands import options as shared
from tta_apm.errors import writing

if TYPE_CHECKING:
    from tta_apm.fields.field import Column


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser("query", "Compute single columns of an image, in any order; no "
                                "other column is computed.")
    parser.add_argument("image", metavar="IMAGE", help=field_options.IMAGE_HELP)
    field_options.add_student(parser)
    parser.add_argument("--at", type=_position, nargs="+", required=True, metavar="X,Y",
                        help="positions in columns, from 0,0 at the top left")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="a .csv file of x, y, red, green, blue and the feature's entries")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print each column as it is computed, and then the mean of their features."""
    trained = field_options.load_student(options.student)
    loaded, = field_options.load_images(trained, (options.image,))

    from tta_apm.fields.field import running_mean

    with writing(options.out), (open(options.out, "w", newline="", encoding="utf-8")
                                if options.out else nullcontext()) as file:
        writer = csv.writer(file) if file else None

        def columns() -> Iterator[Column]:
            for column in loaded.field.query(options.at):
                print(_line(column))
                if writer:
                    writer.writerow([column.x, column.y, *(
                        [] if column.colour is None else column.colour.tolist()),
                        *column.feature.tolist()])
                yield column
        mean = running_mean(column.feature for column in columns())
    print(f"mean of {len(options.at)}: length {mean.norm():.4g}")
    return OK


def _position(text: str) -> tuple[int, int]:
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a position: write X,Y, as in 3,17") from None
    return x, y


def _line(column: Column) -> str:
    line = f"{column.x:4},{column.y:<4} feature of length {column.feature.norm():.4g}"
    if column.colour is None:
        return line
    red, green, blue = (column.colour.clamp(0, 1) * 255).round().int().tolist()
    return f"{line}, colour #{red:02x}{green:02x}{blue:02x}"
