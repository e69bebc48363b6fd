"""`tta-apm table`: the tables of a results folder again, from its files."""

from __future__ import annotations

import argparse
from pathlib import Path

from tta_apm.cli import OK
from tta_apm.commands import options as shared


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = shared.make_parser("table", "Rebuild the tables of a results folder.")
    shared.add_results(parser)
    shared.add_metric(parser)
    parser.add_argument("--published", action="store_true",
                        help="show the paper's rows below ours, where it has such a table")
    return parser


def run(options: argparse.Namespace) -> int:
    """Make the tables, print them and write them."""
    show_tables(options.results, metric=options.metric or "", published=options.published)
    return OK


def show_tables(folder: Path, metric: str = "", published: bool = False) -> None:
    """Print the tables of a folder, then write them there: where nothing can be written, too."""
    from tta_apm.report.write import make_tables

    tables = make_tables(folder, metric=metric, published=published)
    print(tables.terminal)
    tables.write(folder)
    *others, last = tables.files
    print(f"\n{folder}/{', '.join(others)} and {last} hold this.")
