"""Options of the commands on data sets, and the report of a check."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tta_apm.commands.options import WIDTH
from tta_apm.data.corruptions.constants import CORRUPTIONS, SEVERITIES
from tta_apm.errors import UserError, choose


def add_data_dir(into: argparse.ArgumentParser) -> None:
    """Add --data-dir."""
    into.add_argument("--data-dir", default="data", metavar="FOLDER",
                      help="the folder of the data sets, as DATA_DIR (default: data)")


def add_domains(into: argparse.ArgumentParser) -> None:
    """Add --corruptions and --severity, which take lists with commas."""
    into.add_argument("--corruptions", default=",".join(CORRUPTIONS), metavar="A,B,...",
                      help="the corruptions (default: all 15)")
    into.add_argument("--severity", default=",".join(map(str, SEVERITIES)), metavar="N,M,...",
                      help="the severities (default: 1 to 5)")


def corruptions(options: argparse.Namespace) -> list[str]:
    """The corruptions of --corruptions; UserError for an unknown one."""
    names = options.corruptions.split(",")
    for name in names:
        choose("--corruptions", "corruption", name, CORRUPTIONS)
    return list(dict.fromkeys(names))


def severities(options: argparse.Namespace) -> list[int]:
    """The severities of --severity, sorted; UserError for one that is not 1 to 5."""
    levels = options.severity.split(",")
    if not set(levels) <= set(map(str, SEVERITIES)):
        raise UserError(f"--severity {options.severity}: severities are 1 to 5, as in 3,5")
    return sorted({int(level) for level in levels})


def report(names: Sequence[str], data_dir: str, corruptions: Sequence[str] = CORRUPTIONS,
           severities: Sequence[int] = SEVERITIES) -> bool:
    """Check data sets and print the findings; returns whether all are in order."""
    from tta_apm.data.prepare.check import inspect

    print(f"Below DATA_DIR {Path(data_dir).resolve()}:")
    in_order = True
    for name in names:
        finding = inspect(name, data_dir=data_dir, corruptions=corruptions, severities=severities)
        in_order &= finding.in_order
        print(f"\n{name}: {'in order' if finding.in_order else 'NOT IN ORDER'}")
        print(textwrap.fill(finding.text, WIDTH, initial_indent="  ", subsequent_indent="  ",
                            break_long_words=False, break_on_hyphens=False), flush=True)
    return in_order
