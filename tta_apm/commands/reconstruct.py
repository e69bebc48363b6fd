"""`tta-apm reconstruct`: draw the reconstructions of images by a student's RGB head."""

from __future__ import annotations

import argparse

from tta_apm.cli import OK
from tta_apm.commands import field_options


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = field_options.make_parser(
        "reconstruct", "Draw images and their reconstructions by a student's RGB head.",
        "reconstruction.png")
    field_options.add_images(parser)
    field_options.add_student(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw each image beside its reconstruction."""
    from tta_apm.apm.losses import colour_targets
    from tta_apm.fields.pictures import Panel, draw_panels

    rows, trained = [], field_options.load_student(options.student)
    for loaded in field_options.load_images(trained, options.images):
        colours = loaded.field.colours().cpu()
        wanted = colour_targets(loaded.image[None].cpu(), trained.student.patch).view_as(colours)
        error = (colours - wanted).square().mean()
        rows.append([panel._replace(aspect=loaded.aspect) for panel in (
            Panel(loaded.name, loaded.pixels), Panel("mean colour of each patch", wanted.numpy()),
            Panel(f"reconstruction, mean squared error {error:.2g}", colours.numpy()))])
    print(f"Wrote the reconstructions to {draw_panels(rows, options.out)}.")
    return OK
