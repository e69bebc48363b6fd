"""`tta-apm plot`: draw the results of a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from tta_apm.cli import OK
from tta_apm.commands import options as shared
from tta_apm.errors import UserError
from tta_apm.report.plots import KINDS, plot


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser(
        "plot", "Draw the results of a folder: methods by corruption, the difference to the "
        "teacher with its intervals, scores against steps, the audit.")
    shared.add_results(parser)
    parser.add_argument("--kind", choices=tuple(KINDS), help="the picture (default: all for which "
                        "there are results)")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="a .png or .svg file (default: RESULTS/KIND.png)")
    shared.add_metric(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw the pictures and print their names."""
    if options.out and not options.kind:
        raise UserError("--out takes one picture: say which with --kind")
    for path in plot(options.results, kind=options.kind, out=options.out, metric=options.metric):
        print(path)
    return OK
