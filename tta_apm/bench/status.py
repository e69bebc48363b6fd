"""Status: how far a sweep is, read from its folder. Imports no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tta_apm import config
from tta_apm.bench.claim_state import find_workers
from tta_apm.bench.failures import read_failures
from tta_apm.bench.plan import Cell, missing, plan
from tta_apm.errors import UserError


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Args:
        folder: the results folder.
        num_cells: the number of cells that its config asks for.
        done: the names of the recorded cells.
        failed: the names of the cells that failed in the last run, with the reasons.
        missing: the names of all other cells.
        running: the processes that run cells: host, pid, device, since when, their claimed cells
            and since when they run those.
        cells_per_minute: the rate since the first of these processes began; None if there is none
            or no cell was recorded since.
        seconds_left: the time for the missing cells at this rate.
    """

    folder: str
    num_cells: int
    done: list[str]
    failed: dict[str, str]
    missing: list[str]
    running: list[dict[str, Any]]
    cells_per_minute: float | None
    seconds_left: float | None


def find_status(folder: Path) -> Status:
    """The status of a sweep whose OUTPUT_DIR is `folder`. Images are not checked.

    Raises:
        UserError: if no sweep has begun there, or a file is corrupt or does not belong to a sweep.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder} holds no sweep: config.yaml is not found there")
    cells = plan(config.load(str(file), []))
    absent = {cell.name for cell in missing(cells, folder, redo=True)}
    failures = read_failures(folder)
    failed = {name: reason for name, reason in failures.items() if name in absent}
    left = [cell.name for cell in cells if cell.name in absent and cell.name not in failed]
    workers = find_workers(folder)
    since = min((worker.since for worker in workers), default=None)
    rate = None if since is None else _rate(cells, absent, folder, since)
    running = [{"host": worker.host, "pid": worker.pid, "device": worker.device,
                "since": worker.since, "cells": worker.cells, "cells_since": worker.taken}
               for worker in workers if worker.runs]
    return Status(str(folder), len(cells), [cell.name for cell in cells if cell.name not in absent],
                  failed, left, running, rate, 60 * len(left) / rate if rate else None)


def _rate(cells: list[Cell], absent: set[str], folder: Path, since: str) -> float | None:
    """Cells recorded per minute since the time `since`; None if there are none."""
    start = time.mktime(time.strptime(since, "%Y-%m-%d %H:%M:%S"))
    times = [cell.record_file(folder).stat().st_mtime for cell in cells
             if cell.name not in absent]
    recent = [moment for moment in times if moment >= start]
    # Up to the last record: the time after it is that of unfinished cells.
    minutes = (max(recent, default=start) - start) / 60
    return len(recent) / minutes if minutes > 0 else None
