"""Local: workers on this machine, each with a GPU or a share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace

from yacs.config import CfgNode

from tta_apm.bench.launch.launcher import Launcher
from tta_apm.bench.launch.worker import GRACE_SECONDS, Ending, Order, end_with, work
from tta_apm.data.workers import free_cores

# The libraries below torch and numpy read these.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Local(Launcher):
    """Starts processes on this machine.

    Each is in a pool of its own, since the death of a process ends all processes of its pool.
    """

    def __init__(self, cfg: CfgNode, num_workers: int, address: str = "") -> None:
        super().__init__(cfg, num_workers, address)
        self.pools: list[ProcessPoolExecutor] = []
        self.pids: dict[int, Future[int]] = {}
        self.futures: dict[int, Future[Ending]] = {}

    def orders(self, *, redo: bool) -> list[Order]:
        """As Launcher.orders; each worker gets a GPU, round robin, or a share of the cores."""
        gpus = _gpus() if self.cfg.DEVICE in ("auto", "cuda") else []
        share = max(1, free_cores() // self.num_workers)
        threads = {name: os.environ.get(name, str(share)) for name in THREADS}
        return [replace(order, num_threads=share, environment={
                    **threads, **({"CUDA_VISIBLE_DEVICES": gpus[order.number % len(gpus)]}
                                  if gpus else {})})
                for order in super().orders(redo=redo)]

    def start(self, orders: Sequence[Order]) -> str:
        context = multiprocessing.get_context("spawn")
        for order in orders:  # all start at the same time
            pool = ProcessPoolExecutor(1, context, _begin, (os.getpid(),))
            self.pools.append(pool)
            self.pids[order.number] = pool.submit(os.getpid)
            self.futures[order.number] = pool.submit(work, order)
        threads = orders[0].num_threads
        pids = ", ".join(map(str, self._started().values()))
        return (f"{len(orders)} workers on this machine (processes {pids}), {threads} "
                f"{'threads' if threads > 1 else 'thread'} each")

    def ended(self) -> dict[int, Ending]:
        return {number: _ending(future) for number, future in self.futures.items() if future.done()}

    def stop(self) -> None:
        started = self._started()
        for number, pid in started.items():
            if not self.futures[number].done():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end and not all(map(Future.done, self.futures.values())):
            time.sleep(0.05)
        # The claims are released by now; the end of an interpreter may take longer.
        for pid in started.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pool in self.pools:
            pool.shutdown()

    def _started(self) -> dict[int, int]:
        """The process ids by number, without those that died; waits until all have started."""
        return {number: pid.result() for number, pid in self.pids.items()
                if pid.exception() is None}


def _ending(future: Future[Ending]) -> Ending:
    try:
        return future.result()
    except BrokenProcessPool:
        return Ending(died="it was killed, e.g. for lack of memory")


def _begin(parent: int) -> None:
    """Before any work: ignore Ctrl-C, which reaches all processes of a terminal, since the parent
    stops this one; and do not outlive a parent that is killed before it has given out the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1", "NoDevFiles")]
    import torch
    return [str(number) for number in range(torch.cuda.device_count())]
