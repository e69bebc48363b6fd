"""Worker: a process that runs the cells of a folder until none is left. Imports no torch."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tta_apm.console import Interrupts
from tta_apm.errors import UserError, name_and_text

LOGS = "logs"  # folder of the workers' output, in the results folder
POLL_SECONDS = 1.0  # between checks whether the parent process still lives
GRACE_SECONDS = 10.0  # for a worker to end after a signal, before it is killed


@dataclass(frozen=True)
class Order:
    """The instructions for a worker.

    Args:
        number: the number of the worker, from 1.
        num_workers: the number of workers that share the sweep.
        folder: the results folder, absolute; its config.yaml is the config.
        start_folder: the working folder of the command, for relative paths in the config.
        redo: as `tta-apm --redo`.
        num_threads: the number of threads; 0 for all cores.
        environment: variables to set before torch is imported.
        launch: the id of the launcher; "" for none.
    """

    number: int
    num_workers: int
    folder: str
    start_folder: str
    redo: bool = False
    num_threads: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    launch: str = ""

    @property
    def id(self) -> str:
        """An id that a restarted worker shares with the one that it replaces; "" if unknown."""
        return f"{self.launch}/{self.number}" if self.launch else ""

    @property
    def name(self) -> str:
        return f"worker {self.number}"


class Ending(NamedTuple):
    """How a worker ended.

    Args:
        error: why the sweep cannot be run, a sentence; "" if it can.
        died: why the worker ended too early; "" if it did not.
        signal: the number of the last signal that asked it to stop; 0 for none.
    """

    error: str = ""
    died: str = ""
    signal: int = 0


def work(order: Order) -> Ending:
    """Run the cells of a folder until none is left. The output goes to logs/worker-N.log there."""
    os.environ.update(order.environment)
    folder = Path(order.folder)
    if not (folder / "config.yaml").is_file():
        return Ending(f"{order.name} on {platform.node()} does not find {folder}: OUTPUT_DIR must "
                      "be on a disk that all machines share")
    log = folder / LOGS / f"worker-{order.number}.log"
    with _output_to(log), Interrupts(take_over=True) as signals:
        try:
            os.chdir(order.start_folder)
            # timm's import calls functions that newer torch deprecates.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
            _run(order, folder)
            return Ending()
        except KeyboardInterrupt:
            return Ending(signal=signals.last)
        except Exception as error:
            if signals.number:  # a library turned our KeyboardInterrupt into this error
                return Ending(signal=signals.last)
            if isinstance(error, UserError):
                return Ending(f"{order.name} on {platform.node()}: {error}")
            traceback.print_exc()
            return Ending(f"{order.name} on {platform.node()}: {name_and_text(error)}")


def _run(order: Order, folder: Path) -> None:
    from tta_apm import config
    from tta_apm.bench.claims import Claims
    from tta_apm.bench.job import Job, shared_work
    from tta_apm.data.workers import use_cores

    if order.num_threads:
        use_cores(order.num_threads)
    cfg = config.load(folder / "config.yaml", ["OUTPUT_DIR", str(folder)])
    with Claims(folder, shared_work(cfg), num_workers=order.num_workers,
                order=order.id) as claims:
        job = Job(cfg, redo=order.redo)
        todo = job.missing()
        if todo:
            job.require_images()
            job.run(todo, claims)


@contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Append standard output and error to a file inside the `with` block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    originals = [os.dup(number) for number in (1, 2)]
    with open(file, "ab", buffering=0) as log:
        log.write(f"--- process {os.getpid()} on {platform.node()}, "
                  f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, descriptor in zip((1, 2), originals):
            os.dup2(descriptor, number)
            os.close(descriptor)


def end_with(parent: int) -> None:
    """End this process when `parent`, which started it, has ended."""
    def wait_for_parent() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)  # so that it releases its claims
        time.sleep(GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
