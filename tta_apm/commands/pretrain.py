"""`tta-apm pretrain`: train a student over a folder of images (Section 5)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> int:
    """Train, or go on; write the student and the picture of its losses."""
    from tta_apm import config
    from tta_apm.fields.recipe import from_config, keys

    options = _parser().parse_args(words)
    recipe = from_config(config.load_keys(options.cfg, options.overrides, keys()))
    from tta_apm.fields.pretrain import STUDENT_FILE, pretrain

    done = pretrain(recipe)
    if done is None or not done.step:
        return 0
    from tta_apm.fields.losses import LOSSES
    from tta_apm.fields.pictures import draw_losses

    folder = Path(recipe.output_dir)
    picture = draw_losses(done.losses.numpy(), LOSSES, folder / "losses.png")
    print(f"{done.step} steps are done: {folder / STUDENT_FILE} is the student, {picture} its "
          "losses.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tta-apm pretrain", description="Train one student over a folder of images, against "
        "the features of a frozen teacher. The same command goes on where it stopped.")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a file of configs/pretrain")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE",
                        help="overrides of the config, e.g. STEPS 1000 IMAGES my/photos")
    return parser
