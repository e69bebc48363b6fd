"""`tta-apm table`: print the tables of a results folder again, and write them."""

from __future__ import annotations

import argparse
from pathlib import Path

from tta_apm.cli import OK
from tta_apm.commands import options as shared


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser("table", "Make the tables of a results folder again, print them "
                                "and write them there.")
    shared.add_results(parser)
    shared.add_metric(parser)
    parser.add_argument("--published", action="store_true",
                        help="show the rows of the paper's table below ours, if there is one")
    return parser


def run(options: argparse.Namespace) -> int:
    """Make the tables, print them and write them."""
    show_tables(options.results, metric=options.metric or "", published=options.published)
    return OK


def show_tables(folder: Path, metric: str = "", published: bool = False) -> None:
    """Print the tables of a folder, then write them there.

    They are printed first, so that those of a read-only folder are shown, too.
    """
    from tta_apm.report.write import make_tables

    tables = make_tables(folder, metric=metric, published=published)
    print(tables.terminal)
    tables.write(folder)
    *others, last = tables.files
    print(f"\nWrote {', '.join(others)} and {last} to {folder}.")
