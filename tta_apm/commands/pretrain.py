"""`tta-apm pretrain`: train a student on a folder of images (Section 5)."""

from __future__ import annotations

import argparse
from pathlib import Path

from tta_apm.cli import OK
from tta_apm.commands import options as shared


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser(
        "pretrain", "Train one student on a folder of images, against the features of a frozen "
        "teacher. The same command resumes where it stopped.")
    shared.add_config(parser, "configs/pretrain", "STEPS 1000 IMAGES my/photos")
    return parser


def run(options: argparse.Namespace) -> int:
    """Train or resume; write the student and a plot of its losses."""
    from tta_apm import config
    from tta_apm.fields.config import from_config, keys

    cfg = from_config(config.load_keys(options.cfg, options.overrides, keys()))
    from tta_apm.fields.pretrain import STUDENT_FILE, pretrain

    done = pretrain(cfg)
    if done is None or not done.step:
        return OK
    from tta_apm.fields.losses import LOSSES
    from tta_apm.fields.pictures import draw_losses

    folder = Path(cfg.output_dir)
    picture = draw_losses(done.losses.numpy(), LOSSES, folder / "losses.png")
    print(f"{done.step} steps are done: the student is in {folder / STUDENT_FILE}, a plot of its "
          f"losses in {picture}.")
    return OK
