"""`tta-apm interpolate`: draw the way from one image to another through their trigger columns."""

from __future__ import annotations

import argparse

import numpy as np

from tta_apm.cli import OK
from tta_apm.commands import field_options

PER_ROW = 6


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = field_options.make_parser(
        "interpolate", "Interpolate between the trigger columns of two images, and draw the "
        "reconstructions on the way as a strip and a film (.gif).", "interpolation.png")
    parser.add_argument("start", metavar="A", help=field_options.IMAGE_HELP)
    parser.add_argument("end", metavar="B", help="another")
    field_options.add_student(parser)
    parser.add_argument("-n", dest="steps", type=int, default=10, metavar="N",
                        help="steps from the reconstruction of A to that of B (default: 10)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw the reconstructions between two images as a strip and as a film."""
    from tta_apm.fields.field import interpolate
    from tta_apm.fields.pictures import Panel, draw_panels, write_gif

    trained = field_options.load_student(options.student)
    start, end = field_options.load_images(trained, (options.start, options.end))
    frames = [field.colours().cpu().numpy()
              for field in interpolate(start.field, end.field, options.steps)]
    titles = [f"{step}/{options.steps}" for step in range(options.steps + 1)]
    titles[0], titles[-1] = f"0, {start.name}", f"{titles[-1]}, {end.name}"
    aspects = np.linspace(start.aspect, end.aspect, len(frames)).tolist()
    panels = [Panel(title, frame, aspect=aspect)
              for title, frame, aspect in zip(titles, frames, aspects)]
    strip = draw_panels([panels[first:first + PER_ROW] for first
                         in range(0, len(panels), PER_ROW)], options.out)
    film = write_gif(panels, options.out.with_suffix(".gif"))
    print(f"Wrote the steps from {start.name} to {end.name} to {strip} and {film}.")
    return OK
