"""`tta-apm status`: print how far a sweep is."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tta_apm.cli import OK
from tta_apm.commands import options as shared
from tta_apm.names import clean

if TYPE_CHECKING:
    from tta_apm.bench.status import Status


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser(
        "status", "Print how far a sweep is: the cells that are done, failed and missing, the "
        "processes that run it, and the time left. It can be called while the sweep runs.")
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
    """The status as lines of text."""
    text = [f"{status.folder}: {len(status.done)} of {status.num_cells} cells done, "
            f"{len(status.failed)} failed, {len(status.missing)} missing"]
    text += [_worker(worker) for worker in status.running]
    if status.cells_per_minute and status.seconds_left is not None:
        minutes, seconds = divmod(round(status.seconds_left), 60)
        text.append(f"{status.cells_per_minute:.3g} cells a minute, about "
                    f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    if not status.running and (status.missing or status.failed):
        text.append("no process runs it; the same command goes on from there")
    text += [f"FAILED {name}: {clean(reason)}" for name, reason in status.failed.items()]
    return text


def _worker(worker: dict[str, Any]) -> str:
    """One line on a process: where it runs, since when, and its cells."""
    line = f"running on {worker['host']} (process {worker['pid']}) since {worker['since']}"
    cells = worker["cells"]
    if not cells:
        return line
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f"{line}: {clean(cells[0])}{more}, since {worker['cells_since']}"
