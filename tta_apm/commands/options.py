"""Options that several commands share."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from tta_apm.metrics import METRICS

WIDTH = 100


def make_parser(command: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """The parser of `tta-apm COMMAND`; `examples` are printed after the options, unwrapped."""
    return argparse.ArgumentParser(
        prog=f"tta-apm {command}".rstrip(), description=textwrap.fill(description, WIDTH),
        epilog=examples or None, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(into: argparse.ArgumentParser, folder: str, example: str, *,
               required: bool = True) -> None:
    """Add --cfg, whose files are in `folder`, and KEY VALUE overrides."""
    into.add_argument("--cfg", required=required, metavar="FILE", help=f"a file of {folder}")
    into.add_argument("overrides", nargs="*", metavar="KEY VALUE",
                      help=f"overrides of the config, e.g. {example}")


def add_results(into: argparse.ArgumentParser) -> None:
    """Add the results folder of a sweep."""
    into.add_argument("results", type=Path, help="the OUTPUT_DIR of a sweep")


def add_metric(into: argparse.ArgumentParser) -> None:
    """Add --metric, None by default."""
    into.add_argument("--metric", choices=METRICS,
                      help="the score to show (default: that of the run)")
