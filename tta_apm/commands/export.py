"""`tta-apm export`: the results of a folder in other formats, e.g. LaTeX or RobustBench's."""

from __future__ import annotations

import argparse
from pathlib import Path

from tta_apm.atomic import atomic_write
from tta_apm.cli import OK
from tta_apm.commands import options as shared
from tta_apm.interop.robustbench import conditions, find_row, write_entry
from tta_apm.registry import FORMATS
from tta_apm.report.build import build_tables
from tta_apm.report.results import load_rows
from tta_apm.report.write import with_imported

ROBUSTBENCH = "robustbench"  # not one text, but files in a folder
BIBTEX = "bibtex"


def run(options: argparse.Namespace) -> int:
    """Write or print the results."""
    if options.format == ROBUSTBENCH:
        rows = load_rows(options.results)
        row = find_row(rows, options.row)
        for path in write_entry(row, options.name, options.to or Path("model_info"),
                                additional_data=options.additional_data):
            print(path)
        print(f"Row {options.row}: {conditions(row)}.")
        print("This is RobustBench's format, not an entry: its rules take no defence with an "
              "optimisation loop.")
        return OK
    # Citations cover imported rows, too; the other formats hold the results of this folder only.
    tables = with_imported(options.results)[1] if options.format == BIBTEX \
        else build_tables(load_rows(options.results))
    text = FORMATS.load(options.format)(tables)
    if options.to is None:
        print(text, end="")
    else:
        atomic_write(options.to, text.encode())
        print(options.to)
    return OK


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser("export", "Write the results of a folder in another format.")
    parser.add_argument("format", choices=(*FORMATS.names(), ROBUSTBENCH),
                        help="the format to write")
    shared.add_results(parser)
    parser.add_argument("--to", type=Path, metavar="PATH",
                        help="write to this file instead of the terminal; for robustbench, the "
                        "folder of its model_info (default: model_info)")
    robustbench = parser.add_argument_group(ROBUSTBENCH)
    robustbench.add_argument("--row", default="", help="the row of the table, as METHODS names it")
    robustbench.add_argument("--name", default="", help="the name of the model: NameYearWord")
    robustbench.add_argument("--additional-data", action="store_true",
                             help="the backbone was trained on more than the data set's own "
                             "training images, as every CLIP was")
    return parser
