"""`tta-apm reconstruct`: images as a student's RGB head gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tta_apm.commands import field_options


def main(words: Sequence[str]) -> int:
    """Draw each image beside its reconstruction."""
    parser = field_options.parser(
        "reconstruct", "Draw images as a student's RGB head reconstructs them.",
        "reconstruction.png")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=field_options.IMAGE_HELP)
    parser.add_argument("--student", type=Path, required=True, metavar="FILE",
                        help=field_options.STUDENT_HELP)
    options = parser.parse_args(words)

    from tta_apm.apm.losses import colour_targets
    from tta_apm.fields.pictures import Panel, draw_panels

    rows, trained = [], field_options.load_student(options.student)
    for seen in field_options.look(trained, options.images):
        colours = seen.field.colours().cpu()
        wanted = colour_targets(seen.image[None].cpu(), trained.student.patch).view_as(colours)
        error = (colours - wanted).square().mean()
        rows.append([Panel(seen.name, seen.pixels),
                     Panel("mean colour of each patch", wanted.numpy()),
                     Panel(f"reconstruction, mean squared error {error:.2g}", colours.numpy())])
    print(f"{draw_panels(rows, options.out)} shows the reconstructions.")
    return 0
