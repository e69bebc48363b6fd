"""Status: how far a sweep is, read off its folder. Imports no torch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tta_apm import config
from tta_apm.atomic import atomic_write
from tta_apm.bench.plan import Cell, missing, plan
from tta_apm.errors import UserError
from tta_apm.lock import find_holder

# Cells that failed in the last run, with the reasons; in the folder of the results.
FAILURES = "failures.json"


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Args:
        folder: of the results.
        num_cells: that its config asks for.
        done: names of the cells that are recorded.
        failed: of those that failed in the last run, with the reasons.
        missing: of all others.
        running: who is at work there, and since when: host, pid, since; None for nobody.
        cells_per_minute: recorded since then, None where nobody is at work or none is recorded.
        seconds_left: at this rate, for the missing cells.
    """

    folder: str
    num_cells: int
    done: list[str]
    failed: dict[str, str]
    missing: list[str]
    running: dict[str, Any] | None
    cells_per_minute: float | None
    seconds_left: float | None


def find_status(folder: Path) -> Status:
    """The status of a sweep whose OUTPUT_DIR is `folder`. Images are not looked at.

    Raises:
        UserError: if no sweep has begun there, or a file is incomplete or not one of a sweep.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder} holds no sweep: config.yaml is not found there")
    cells = plan(config.load(str(file), []))
    absent = {cell.name for cell in missing(cells, folder, redo=True)}
    failures = read_failures(folder)
    failed = {name: reason for name, reason in failures.items() if name in absent}
    left = [cell.name for cell in cells if cell.name in absent and cell.name not in failed]
    running = find_holder(folder)
    rate = None if running is None else _rate(cells, absent, folder, running["since"])
    return Status(str(folder), len(cells), [cell.name for cell in cells if cell.name not in absent],
                  failed, left, running, rate, 60 * len(left) / rate if rate else None)


def _rate(cells: list[Cell], absent: set[str], folder: Path, since: str) -> float | None:
    """Cells per minute that were recorded since a time."""
    start = time.mktime(time.strptime(since, "%Y-%m-%d %H:%M:%S"))
    times = [_record(cell, folder).stat().st_mtime for cell in cells if cell.name not in absent]
    recent = [moment for moment in times if moment >= start]
    # Up to the last one: what is under way counts for nothing yet.
    minutes = (max(recent, default=start) - start) / 60
    return len(recent) / minutes if minutes > 0 else None


def _record(cell: Cell, folder: Path) -> Path:
    path = cell.path(folder)
    return path.with_name(path.name + ".json")


def read_failures(folder: Path) -> dict[str, str]:
    """Why cells failed in the last run, by name; empty where none did."""
    try:
        content = json.loads((folder / FAILURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(reason) for name, reason in content.items()} \
        if isinstance(content, dict) else {}


def write_failures(folder: Path, reasons: dict[str, str]) -> None:
    """Note why cells failed; for no reasons the note of the run before is removed."""
    if reasons:
        atomic_write(folder / FAILURES, json.dumps(reasons, indent=1).encode())
    else:
        (folder / FAILURES).unlink(missing_ok=True)
