"""`tta-apm status`: how far a sweep is."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from tta_apm.cli import OK
from tta_apm.commands import options as shared
from tta_apm.names import clean

if TYPE_CHECKING:
    from tta_apm.bench.status import Status


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = shared.make_parser(
        "status", "Say how far a sweep is: cells that are done, failed and missing, who is at work "
        "since when, and the time left. It may be asked while the sweep runs.")
    shared.add_results(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, with the names of all cells")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the status of a folder."""
    from tta_apm.bench.status import find_status

    status = find_status(options.results)
    print(json.dumps(asdict(status), indent=1) if options.json else "\n".join(lines(status)))
    return OK


def lines(status: Status) -> list[str]:
    """What a reader is told."""
    told = [f"{status.folder}: {len(status.done)} of {status.num_cells} cells done, "
            f"{len(status.failed)} failed, {len(status.missing)} missing"]
    if status.running:
        line = (f"running on {status.running['host']} (process {status.running['pid']}) since "
                f"{status.running['since']}")
        if status.cells_per_minute and status.seconds_left is not None:
            minutes, seconds = divmod(round(status.seconds_left), 60)
            line += (f": {status.cells_per_minute:.3g} cells a minute, about "
                     f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
        told.append(line)
    elif status.missing or status.failed:
        told.append("nobody is at work; the same command goes on from there")
    told += [f"FAILED {name}: {clean(reason)}" for name, reason in status.failed.items()]
    return told
