"""Claims: the processes that share a results folder, and the cells that each has claimed.

A file in the folder lists them. It is read and written under the folder's lock. The last process
removes it, together with the results of one-time setup. A process that is dead, or that has sent no
heartbeat from another machine for a minute, loses its claims: others take them over. Imports no
torch.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from tta_apm.atomic import atomic_path, machine, remove_leftovers, started
from tta_apm.bench.claim_state import FILE, State, Worker, read_state
from tta_apm.bench.failures import read_failures, write_failures
from tta_apm.console import uninterrupted
from tta_apm.errors import UserError, writing
from tta_apm.lock import READ_ONLY, briefly_locked

# Folder of the results of one-time setup: see backbones.tensor_cache.
PRECOMPUTED = ".precomputed"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # without a heartbeat, after which a process elsewhere counts as dead
MAX_DEATHS = 3  # a cell fails if so many processes died while they had claimed it
POLL_SECONDS = 0.5

# The names of the cells that one process must run.
Unit = tuple[str, ...]


class Taken(NamedTuple):
    """The result of a claim.

    Args:
        units: the indices of the units that the process has now claimed.
        done: the names of recorded cells.
        failed: the names of failed cells, with the reasons.
    """

    units: list[int]
    done: list[str]
    failed: dict[str, str]


class Claims:
    """The claims of this process on a folder, which it shares inside the `with` block.

    In a folder that cannot be written to, every unit can be claimed.

    Args:
        folder: the results folder; it is created if needed.
        work: a text that identifies the work, e.g. the config.
        runs: see Worker.
        num_workers: the number of processes that will share the work, if it is known.
        order: see Worker.

    Attributes:
        is_first: whether no other process ran cells when this one began.
        is_crowded: whether another process used the same device or cores since this one began its
            current units.

    Raises:
        UserError: on entering, if another process uses the folder for other work, or the disk is
            full.
    """

    def __init__(self, folder: Path, work: str, *, runs: bool = True, num_workers: int = 1,
                 order: str = "") -> None:
        self.folder = folder
        self.work = hashlib.sha256(work.encode("utf-8", "replace")).hexdigest()[:16]
        self.id = secrets.token_hex(8)
        pid = os.getpid()
        self.me = Worker(platform.node(), machine(), pid, started(pid), _now(), runs,
                         order=order)
        self.num_workers = num_workers
        self.is_first = self.is_crowded = False
        self._is_open = False
        self._made_folder = False
        self._heard: dict[str, tuple[int, float]] = {}  # last heartbeats of others, when first seen
        self._first_beats: dict[str, int] = {}
        self._records: dict[str, tuple[Path, int]] = {}  # record files of cells, when written
        self._ended = threading.Event()
        self._guard = threading.RLock()  # shared with the thread of heartbeats

    def __enter__(self) -> Claims:
        self._made_folder = not self.folder.exists()
        try:
            while not self._join():
                time.sleep(POLL_SECONDS)
        except OSError as error:
            if error.errno in READ_ONLY and not (self.folder / FILE).exists():
                return self
            with writing(f"to {self.folder}", "choose a folder of yours"):
                raise
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._is_open:
            with suppress(OSError), self._raw_state() as state:
                self._is_open = False
                state.workers.pop(self.id, None)
        if self._made_folder:  # leave no empty folder behind
            with suppress(OSError):
                self.folder.rmdir()

    def watch(self, records: dict[str, Path]) -> None:
        """Note the times of the record files of the cells to run, by name.

        A record that changes later was written by another process.
        """
        self._records = {name: (path, _written(path)) for name, path in records.items()}

    def take(self, wanted: Sequence[Unit], every: Collection[Unit]) -> Taken:
        """Claim units; returns also which cells other processes have recorded or failed.

        Args:
            wanted: the units that this process could begin now, in order of preference.
            every: all units that are yet to run, those included. A process claims no more than its
                share of them at a time.
        """
        if not self._is_open:
            return Taken(list(range(len(wanted))), [], {})
        with self._state() as state:
            failures = read_failures(self.folder)
            for name in {name for unit in wanted for name in unit} - {*state.done}:
                if self._is_recorded(name):  # its process died before it could update the state
                    state.done.append(name)
            others = {name for key, worker in state.workers.items() if key != self.id
                      for name in worker.cells}
            gone = {*state.done, *failures}
            is_free = {unit: not others & {*unit} and not gone.issuperset(unit) for unit in every}
            workers = max(self.num_workers, sum(worker.runs for worker in state.workers.values()))
            most = math.ceil(sum(is_free.values()) / workers)
            units: list[int] = []
            for index, unit in enumerate(wanted):
                deadly = max((state.deaths.get(name, 0) for name in unit), default=0)
                if is_free.get(unit) and len(units) < most and not (deadly and units):
                    units.append(index)
                    if deadly:  # alone, to find out whether this unit kills processes
                        break
            if units:
                if not self.me.cells:
                    self.is_crowded = False
                self.me.cells += [name for index in units for name in wanted[index]]
                self.me.taken = _now()
                self.is_crowded |= self._is_crowded(state)
            return Taken(units, list(state.done), failures)

    def finish(self, name: str) -> None:
        """Note that a cell is recorded, and release it."""
        if self._is_open:
            with self._state() as state:
                if name not in state.done:  # else another process has noticed the record already
                    state.done.append(name)
                self._drop([name])

    def fail(self, name: str, why: str) -> None:
        """Note that a cell failed, and release it."""
        with self._state() if self._is_open else nullcontext():
            write_failures(self.folder, {**read_failures(self.folder), name: why})
            self._drop([name])

    def release(self, names: Collection[str]) -> None:
        """Release claimed cells that were not run."""
        if self._is_open and {*names} & {*self.me.cells}:
            with self._state():
                self._drop(names)

    def release_launch(self, launch: str) -> None:
        """Release the claims of all workers of a launcher, which has ended them.

        Args:
            launch: the id of the launcher.
        """
        if self._is_open:
            with self._state() as state:
                state.workers = {key: worker for key, worker in state.workers.items()
                                 if not worker.order.startswith(f"{launch}/")}

    def _drop(self, names: Collection[str]) -> None:
        self.me.cells = [name for name in self.me.cells if name not in names]

    def _join(self) -> bool:
        """Add this process to the state; returns False while a process with other work may live."""
        with self._raw_state() as state:
            if not state.workers:
                state.work, state.done, state.deaths = self.work, [], {}
                write_failures(self.folder, {})
                self._remove_precomputed()
            if state.work != self.work:
                holder = next(iter(state.workers.values()))
                if any(worker.machine == machine() or self._was_heard(key, worker)
                       for key, worker in state.workers.items()):
                    raise UserError(f"{self.folder} is being written to by another command or "
                                    f"config ({holder.who}): wait for its end, or choose another "
                                    "folder")
                return False
            self.is_first = not any(worker.runs for worker in state.workers.values())
            remove_leftovers(self.folder)
            self._is_open = True
        return True

    @contextmanager
    def _state(self) -> Iterator[State]:
        """As _raw_state; UserError if the file cannot be written, e.g. because the disk is full."""
        with writing(self.folder / FILE), self._raw_state() as state:
            yield state

    @contextmanager
    def _raw_state(self) -> Iterator[State]:
        """The state, under the lock, without dead processes; changes are written at the end."""
        with uninterrupted(), self._guard, briefly_locked(self.folder):
            state = read_state(self.folder)
            before = state.text()
            for key, worker in list(state.workers.items()):
                if key != self.id and (worker.is_dead() or self._is_silent(key, worker)
                                       or self._is_replaced(worker)):
                    del state.workers[key]
                    for name in worker.cells:
                        state.deaths[name] = state.deaths.get(name, 0) + 1
                        self._fail_deadly(name, state)
            yield state
            if self._is_open:
                state.workers[self.id] = self.me
                self.is_crowded |= self._is_crowded(state)
            if not state.workers:
                self._remove_precomputed()
                (self.folder / FILE).unlink(missing_ok=True)
            elif (text := state.text()) != before:
                with atomic_path(self.folder / FILE, durable=False) as temporary:
                    temporary.write_bytes(text)

    def _remove_precomputed(self) -> None:
        shutil.rmtree(self.folder / PRECOMPUTED, ignore_errors=True)

    def _fail_deadly(self, name: str, state: State) -> None:
        """Fail a cell if MAX_DEATHS processes died while they ran it."""
        if state.deaths[name] >= MAX_DEATHS and name not in state.done \
                and not self._is_recorded(name):
            why = (f"{MAX_DEATHS} processes that ran it were killed, e.g. for lack of memory; "
                   "TOGETHER 1 and a smaller BATCH_SIZE need less")
            write_failures(self.folder, {**read_failures(self.folder), name: why})

    def _is_silent(self, key: str, worker: Worker) -> bool:
        """Whether a process of another machine has sent no heartbeat for too long.

        It is measured with this machine's clock, since clocks of other machines may differ.
        """
        beat, since = self._heard.get(key, (None, 0.0))
        if beat != worker.beat:
            self._heard[key] = worker.beat, time.monotonic()
            return False
        return worker.machine != machine() and time.monotonic() - since > SILENT_SECONDS

    def _is_replaced(self, worker: Worker) -> bool:
        """Whether this process was started in place of `worker`, which is then dead."""
        return bool(worker.order) and worker.order == self.me.order

    def _was_heard(self, key: str, worker: Worker) -> bool:
        """Whether it has sent a heartbeat since this process first saw it."""
        return worker.beat != self._first_beats.setdefault(key, worker.beat)

    def _is_recorded(self, name: str) -> bool:
        """Whether a cell's record was written since `watch`."""
        if name not in self._records:
            return False
        path, before = self._records[name]
        return _written(path) not in (before, 0)

    def _is_crowded(self, state: State) -> bool:
        """Whether another process runs cells on this one's device, or on the same cores."""
        return any(key != self.id and other.runs and other.machine == self.me.machine
                   and (other.device == self.me.device or "cpu" in (other.device, self.me.device))
                   for key, other in state.workers.items())

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError), self._guard:
                if not self._ended.is_set():
                    with self._raw_state():
                        self.me.beat += 1


def _written(path: Path) -> int:
    """The time of a file's last write; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
