"""`tta-apm plot`: pictures of a results folder, written beside its tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tta_apm.errors import UserError
from tta_apm.report import drawings
from tta_apm.report.blocks import METRICS, Block, make_blocks
from tta_apm.report.results import group_rows, load_results, saved_config
from tta_apm.report.style import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each kind needs, for who asks for one that cannot be drawn.
KINDS: dict[str, tuple[Callable[[Block], list[Figure]], str]] = {
    "methods": (drawings.methods, "any results"),
    "teacher": (drawings.teacher, "a method with a teacher"),
    "steps": (drawings.steps, "a method with a teacher and two numbers of steps, say METHODS "
              "[apm STEPS 5, apm STEPS 20]"),
    "audit": (drawings.audit, "the results of the configs in cfgs/audit"),
}


def main(words: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tta-apm plot", description="Draw what a results folder holds: methods by corruption, "
        "the difference to the teacher with its intervals, figures against steps, the audit.")
    parser.add_argument("results", type=Path, help="the OUTPUT_DIR of a sweep")
    parser.add_argument("--kind", choices=tuple(KINDS), help="default: all that can be drawn")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="a .png or .svg; default: RESULTS/KIND.png")
    parser.add_argument("--metric", choices=METRICS, help="default: that of the run")
    options = parser.parse_args(words)
    if options.out and not options.kind:
        parser.error("--out takes one picture: say which with --kind")
    for path in draw(options.results, kind=options.kind, out=options.out, metric=options.metric):
        print(path)
    return 0


def draw(folder: Path, *, kind: str | None = None, out: Path | None = None,
         metric: str | None = None) -> list[Path]:
    """Draw the results in `folder`; of several severities their mean.

    Args:
        folder: of the results, with the records below cells/.
        kind: of KINDS; None draws all that can be.
        out: the file of the one picture of `kind`; None writes <kind>.png to `folder`.
        metric: "error" or "accuracy"; None takes the run's.

    Returns:
        The files written.

    Raises:
        UserError: if there are no results, a file of them is not whole, or `kind` has nothing to
            draw.
    """
    config = saved_config(folder)
    blocks = make_blocks(group_rows(load_results(folder), config.get("METHODS", [])),
                         metric=metric or config.get("METRIC", "error"))
    last = {block.dataset: block for block in blocks}
    pictures: list[tuple[str, Figure]] = []
    for name in [kind] if kind else KINDS:
        figures = [made for block in last.values() for made in KINDS[name][0](block)]
        pictures += [(f"{name}{f'-{place}' * (place > 1)}.png", made)
                     for place, made in enumerate(figures, 1)]
    if not pictures:
        raise UserError(f"{folder}: a picture of kind {kind} needs {KINDS[kind or ''][1]}")
    if out and len(pictures) > 1:
        raise UserError(f"{folder} gives {len(pictures)} pictures of kind {kind}, --out takes one: "
                        "leave it out to have them all in that folder")
    return [save(made, out or folder / name) for name, made in pictures]
