"""Follow: show the progress of workers, read from the results folder. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from tta_apm.bench.claim_state import State, read_state
from tta_apm.bench.failures import read_failures
from tta_apm.bench.job import Job
from tta_apm.bench.launch.launcher import Launcher
from tta_apm.bench.launch.worker import LOGS, Ending
from tta_apm.bench.plan import Cell
from tta_apm.bench.progress import line_of
from tta_apm.bench.records import load_predictions, load_record
from tta_apm.console import stop_if_asked
from tta_apm.errors import UserError
from tta_apm.progress import bar

POLL_SECONDS = 0.3
END_SECONDS = 60.0  # to wait for workers to end after the last cell


def follow(job: Job, todo: Sequence[Cell], launcher: Launcher) -> dict[str, str]:
    """Show the progress of workers until all cells are recorded or failed.

    Returns:
        The names of the cells that failed, with the reasons.

    Raises:
        UserError: if a worker finds that the sweep cannot be run, or all workers end too early.
    """
    left = {cell.name: cell for cell in todo}
    failed: dict[str, str] = {}
    reported: set[int] = set()
    rows = {cell.name: cell.row.text for cell in job.cells}
    with bar(len(left), "cells") as shown:
        while left:
            stop_if_asked()
            endings = launcher.ended()  # first, so that the folder has all that these workers did
            state = read_state(job.folder)
            failures = read_failures(job.folder)
            for name in [name for name in state.done if name in left]:
                shown.write(_recorded(left.pop(name), job), file=sys.stdout)
                shown.update(1)
            for name in [name for name in failures if name in left]:
                failed[name] = failures[name]
                shown.write(f"{line_of(left.pop(name))}  FAILED: {failures[name]}", file=sys.stdout)
                shown.update(1)
            sys.stdout.flush()
            shown.set_description(_doing(state, rows))
            shown.update(0)
            for number, ending in endings.items():
                if left:
                    _require_no_error(ending, job)
                if ending.died and number not in reported:
                    reported.add(number)
                    shown.write(f"worker {number} ended too early: {ending.died}; the others take "
                                "over what it had begun", file=sys.stderr)
            if left and len(endings) == launcher.num_workers:
                if left := {cell.name: cell for cell in job.missing() if cell.name in left}:
                    raise UserError(
                        f"all workers have ended, and {len(left)} cells are still missing: see "
                        f"{LOGS}/ in {job.folder}; the same command goes on from there")
            if left:
                time.sleep(POLL_SECONDS)
    if len(failed) == len(todo):
        _require_nothing_worse(job, launcher)
    return failed


def _require_nothing_worse(job: Job, launcher: Launcher) -> None:
    """Wait for all workers; UserError if one finds that the sweep cannot be run.

    The worker that checks the whole sweep may end after those whose cells all failed.
    """
    end = time.monotonic() + END_SECONDS
    while len(endings := launcher.ended()) < launcher.num_workers and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    for ending in endings.values():
        _require_no_error(ending, job)


def _require_no_error(ending: Ending, job: Job) -> None:
    if ending.error:
        raise UserError(f"{ending.error} (see {LOGS}/ in {job.folder})")


def _doing(state: State, rows: Mapping[str, str]) -> str:
    """The numbers of busy workers and of their cells and rows; `rows` are by cell."""
    busy = [worker for worker in state.workers.values() if worker.runs and worker.cells]
    names = [name for worker in busy for name in worker.cells]
    if not names:
        return "no worker is busy"
    return (f"{_counted(len(busy), 'worker')} on {_counted(len(names), 'cell')} of "
            f"{_counted(len({rows.get(name, name) for name in names}), 'row')}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _recorded(cell: Cell, job: Job) -> str:
    path = cell.record_file(job.folder)
    record = load_record(path)
    return line_of(cell, load_predictions(path, record), record.seconds)
