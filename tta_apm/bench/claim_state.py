"""Claim state: the file that lists the processes of a results folder, and their claims.

Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tta_apm.atomic import is_alive, machine

FILE = ".workers"


@dataclass
class Worker:
    """A process that shares a folder.

    Args:
        host, machine, pid, born: identify the process; see atomic.machine and atomic.started.
        since: when it began, in local time.
        runs: whether it runs cells; a process that only starts and follows workers does not.
        device: where it runs them; "" if not yet known.
        beat: the number of heartbeats.
        cells: the names of the cells that it has claimed.
        taken: when it made the last claim, in local time; "" for never.
        order: the id of its order from a launcher, see worker.Order; "" for none.
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
        """Whether it is a process of this machine that has ended."""
        return self.machine == machine() and not is_alive(self.pid, self.born)


@dataclass
class State:
    """The content of the file.

    Args:
        work: a hash of what the processes must have in common, e.g. the config.
        workers: by a random id.
        done: the cells that were recorded since the first process began.
        deaths: by cell, the number of processes that died while they had claimed it.
    """

    work: str = ""
    workers: dict[str, Worker] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)

    def text(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_state(folder: Path) -> State:
    """The state of a folder; an empty one if no process shares it."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        workers = {name: Worker(**fields) for name, fields in content.pop("workers").items()}
        return State(workers=workers, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return State()


def find_workers(folder: Path) -> list[Worker]:
    """The processes that share a folder, without those of this machine that have ended."""
    return [worker for worker in read_state(folder).workers.values() if not worker.is_dead()]
