"""Claims: which processes are at work on a results folder, and what each has claimed.

A file of the folder lists them. It is read and written under the folder's lock, which is held for a
moment, and goes with the last process, as does what one of them works out once for all. Whoever is
dead, or silent for a minute on another machine, loses its claims: others take them over. Imports no
torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from tta_apm.atomic import atomic_path, is_alive, machine, remove_leftovers, started
from tta_apm.bench.failures import read_failures, write_failures
from tta_apm.console import uninterrupted
from tta_apm.errors import UserError, writing
from tta_apm.lock import READ_ONLY, briefly_locked

FILE = ".workers"
ONCE = ".once"  # folder of what one process works out for all: see backbones.once
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # without a beat: a process of another machine is no more
MOST_DEATHS = 3  # of processes that had claimed a cell, before it counts as failed
POLL_SECONDS = 0.5

# The names of the cells that are run together or not at all.
Unit = tuple[str, ...]


@dataclass
class Worker:
    """A process at work on a folder.

    Args:
        host, machine, pid, born: which process it is; see atomic.machine and atomic.started.
        since: when it began, local time.
        runs: whether it runs cells; one that only starts and follows others does not.
        device: where it runs them; "" for not known yet.
        beat: grows as long as it lives.
        cells: that it has claimed.
        taken: when it claimed the last of them, local time; "" for never.
        order: that a launcher gave it, see worker.Order; "" for none.
    """

    host: str
    machine: str
    pid: int
    born: str
    since: str
    runs: bool = True
    device: str = ""
    beat: int = 0
    cells: list[str] = field(default_factory=list)
    taken: str = ""
    order: str = ""

    @property
    def who(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_dead(self) -> bool:
        """Whether it is a process of this machine that runs no more."""
        return self.machine == machine() and not is_alive(self.pid, self.born)


@dataclass
class State:
    """What the file holds.

    Args:
        work: hash of what the processes have in common; other work is refused.
        workers: by an id of their own.
        done: cells that were recorded since the first of them began.
        deaths: how many processes died that had claimed a cell.
    """

    work: str = ""
    workers: dict[str, Worker] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)

    def text(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_state(folder: Path) -> State:
    """The state of a folder; an empty one where nobody is at work."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        workers = {name: Worker(**fields) for name, fields in content.pop("workers").items()}
        return State(workers=workers, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return State()


def find_workers(folder: Path) -> list[Worker]:
    """Who is at work in a folder, as far as can be told at one look."""
    return [worker for worker in read_state(folder).workers.values() if not worker.is_dead()]


class Taken(NamedTuple):
    """What a process was given.

    Args:
        units: indices of those that it has now claimed.
        done: names of cells that others have recorded.
        failed: of those that failed elsewhere, with the reasons.
    """

    units: list[int]
    done: list[str]
    failed: dict[str, str]


class Claims:
    """A process's part in the work on a folder. Use it as a context: inside, it is at work there.

    A folder that cannot be written to has no claims: all units are given.

    Args:
        folder: of the results, which is made.
        work: text of all that the work depends on, e.g. the config.
        runs: see Worker.
        num_workers: that are expected to share the work, if not more of them are there.
        order: see Worker.

    Attributes:
        is_first: whether nobody else ran cells when it began.
        is_crowded: whether another process ran cells on the same device or cores since this one
            last began a unit.

    Raises:
        UserError: on entering, if another process holds the folder for other work, or the disk is
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
        self._heard: dict[str, tuple[int, float]] = {}  # beats of others, and when they were new
        self._first_beats: dict[str, int] = {}
        self._records: dict[str, tuple[Path, int]] = {}  # of cells to run, and when written
        self._ended = threading.Event()
        self._guard = threading.RLock()  # for the thread that beats

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

    def know(self, records: dict[str, Path]) -> None:
        """Note the record files of the cells to run, by name, as they are now: one that changes is
        another process's work."""
        self._records = {name: (path, _written(path)) for name, path in records.items()}

    def take(self, wanted: Sequence[Unit], every: Collection[Unit]) -> Taken:
        """Claim units, and learn what others have done.

        Args:
            wanted: units that this process could begin now, in the order of its wishes.
            every: all units that it knows to be open, those included: where several processes
                share the work, none takes more than its part of them at a time.
        """
        if not self._is_open:
            return Taken(list(range(len(wanted))), [], {})
        with self._state() as state:
            failures = read_failures(self.folder)
            for name in {name for unit in wanted for name in unit} - {*state.done}:
                if self._is_recorded(name):  # by a process that died before it could say so
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
                    if deadly:  # alone: it may be the one that they died of
                        break
            if units:
                if not self.me.cells:
                    self.is_crowded = False
                self.me.cells += [name for index in units for name in wanted[index]]
                self.me.taken = _now()
                self.is_crowded |= self._is_crowded(state)
            return Taken(units, list(state.done), failures)

    def finish(self, name: str) -> None:
        """A cell is recorded."""
        if self._is_open:
            with self._state() as state:
                if name not in state.done:  # else another process has seen its record already
                    state.done.append(name)
                self._let_go([name])

    def fail(self, name: str, why: str) -> None:
        """A cell failed."""
        with self._state() if self._is_open else nullcontext():
            write_failures(self.folder, {**read_failures(self.folder), name: why})
            self._let_go([name])

    def release(self, names: Collection[str]) -> None:
        """Give cells back that were claimed and not run."""
        if self._is_open and {*names} & {*self.me.cells}:
            with self._state():
                self._let_go(names)

    def forget(self, launch: str) -> None:
        """Give back what processes had claimed that a launcher has ended, on whatever machine.

        Args:
            launch: what their orders begin with.
        """
        if self._is_open:
            with self._state() as state:
                state.workers = {key: worker for key, worker in state.workers.items()
                                 if not worker.order.startswith(f"{launch}/")}

    def _let_go(self, names: Collection[str]) -> None:
        self.me.cells = [name for name in self.me.cells if name not in names]

    def _join(self) -> bool:
        """Be listed. False as long as it cannot be told whether one of other work still lives."""
        with self._raw_state() as state:
            if not state.workers:
                state.work, state.done, state.deaths = self.work, [], {}
                write_failures(self.folder, {})
                self._remove_once()
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
        """As _raw_state. UserError if it cannot be written, e.g. because the disk is full."""
        with writing(self.folder / FILE), self._raw_state() as state:
            yield state

    @contextmanager
    def _raw_state(self) -> Iterator[State]:
        """The state, to be changed: without those who are gone, and with this process as it is."""
        with uninterrupted(), self._guard, briefly_locked(self.folder):
            state = read_state(self.folder)
            before = state.text()
            for key, worker in list(state.workers.items()):
                if key != self.id and (worker.is_dead() or self._is_silent(key, worker)
                                       or self._is_followed(worker)):
                    del state.workers[key]
                    for name in worker.cells:
                        state.deaths[name] = state.deaths.get(name, 0) + 1
                        self._bury(name, state)
            yield state
            if self._is_open:
                state.workers[self.id] = self.me
                self.is_crowded |= self._is_crowded(state)
            if not state.workers:
                self._remove_once()
                (self.folder / FILE).unlink(missing_ok=True)
            elif (text := state.text()) != before:
                with atomic_path(self.folder / FILE, durable=False) as temporary:
                    temporary.write_bytes(text)

    def _remove_once(self) -> None:
        shutil.rmtree(self.folder / ONCE, ignore_errors=True)

    def _bury(self, name: str, state: State) -> None:
        """Let a cell fail that too many processes died of."""
        if state.deaths[name] >= MOST_DEATHS and name not in state.done \
                and not self._is_recorded(name):
            why = (f"{MOST_DEATHS} processes that ran it were killed, e.g. for want of memory; "
                   "TOGETHER 1 and a smaller BATCH_SIZE take less")
            write_failures(self.folder, {**read_failures(self.folder), name: why})

    def _is_silent(self, key: str, worker: Worker) -> bool:
        """Whether a process of another machine has not been heard for too long, by this one's
        clock: those of other machines may differ."""
        beat, since = self._heard.get(key, (None, 0.0))
        if beat != worker.beat:
            self._heard[key] = worker.beat, time.monotonic()
            return False
        return worker.machine != machine() and time.monotonic() - since > SILENT_SECONDS

    def _is_followed(self, worker: Worker) -> bool:
        """Whether this process was started in its place: nobody does so before it is dead."""
        return bool(worker.order) and worker.order == self.me.order

    def _was_heard(self, key: str, worker: Worker) -> bool:
        """Whether it has beaten since this process first saw it."""
        return worker.beat != self._first_beats.setdefault(key, worker.beat)

    def _is_recorded(self, name: str) -> bool:
        """Whether a cell's record was written since `know`."""
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
    """When a file was written; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
