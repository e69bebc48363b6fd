"""Launcher: the interface of launchers, which start workers. Imports no torch."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from tta_apm.bench.launch.worker import Ending, Order
from tta_apm.registry import Registry

LAUNCHERS = Registry("tta_apm.launchers", "launcher")


class Launcher(ABC):
    """Starts workers: processes that call `worker.work` with an Order each.

    Args:
        cfg: the config of the sweep; its section LAUNCH has the resources of a worker.
        num_workers: the number of workers to start.
        address: the address of a running cluster; "" for none.

    Attributes:
        takes_address: whether it uses `address`.
        outlives_command: whether the workers go on after the command that started them.
        id: a random id of this launcher.

    Raises:
        UserError: if it cannot be used, e.g. without its package.
    """

    takes_address = False
    outlives_command = False

    def __init__(self, cfg: CfgNode, num_workers: int, address: str = "") -> None:
        self.cfg = cfg
        self.num_workers = num_workers
        self.address = address
        self.folder = Path(cfg.OUTPUT_DIR).absolute()
        self.id = secrets.token_hex(4)

    def orders(self, *, redo: bool) -> list[Order]:
        """The order of each worker; a subclass may add threads and environment variables."""
        return [Order(number, self.num_workers, str(self.folder), str(Path.cwd()), redo,
                      launch=self.id)
                for number in range(1, self.num_workers + 1)]

    @abstractmethod
    def start(self, orders: Sequence[Order]) -> str:
        """Start a worker for each order; returns a line on them for the user."""

    @abstractmethod
    def ended(self) -> dict[int, Ending]:
        """The workers that have ended, by number; does not wait."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all workers and wait until they have ended."""

    def describe(self, command: Sequence[str]) -> str:
        """A text that `--dry-run` prints, e.g. a batch script; "" for none.

        Args:
            command: the command line, in words, that does the work of one worker.
        """
        return ""
