"""Launcher: the contract of what starts workers. Imports no torch."""

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
        cfg: of the sweep; its section LAUNCH holds what a launcher may be told.
        address: of a cluster that is there; "" for none.

    Attributes:
        takes_address: whether `address` means anything to it.
        goes_on: whether the workers outlive the command that started them.
        id: of this one among all launchers.

    Raises:
        UserError: where it cannot be used, e.g. without its package.
    """

    takes_address = False
    goes_on = False

    def __init__(self, cfg: CfgNode, num_workers: int, address: str = "") -> None:
        self.cfg = cfg
        self.num_workers = num_workers
        self.address = address
        self.folder = Path(cfg.OUTPUT_DIR).absolute()
        self.id = secrets.token_hex(4)

    def orders(self, *, redo: bool) -> list[Order]:
        """What each worker is told, where nothing else is to be said of the machine."""
        return [Order(number, self.num_workers, str(self.folder), str(Path.cwd()), redo,
                      launch=self.id)
                for number in range(1, self.num_workers + 1)]

    @abstractmethod
    def start(self, orders: Sequence[Order]) -> str:
        """Start a worker for each order; returns what the user may want to know, in a line."""

    @abstractmethod
    def ended(self) -> dict[int, Ending]:
        """The workers that have ended, by number. Does not wait."""

    @abstractmethod
    def stop(self) -> None:
        """End the workers that are left, and wait until they have ended."""

    def describe(self, command: Sequence[str]) -> str:
        """What `--dry-run` shows of the start, e.g. a batch script; "" for nothing.

        Args:
            command: the words of a command line that does the work of one worker.
        """
        return ""
