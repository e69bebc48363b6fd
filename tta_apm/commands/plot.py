"""`tta-apm plot`: pictures of a results folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tta_apm.metrics import METRICS
from tta_apm.report.plots import KINDS, draw


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
