"""Isolation: Guard wraps every call into a method, so that no row's numbers depend on another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import thread as executors
from typing import TypeVar

from torch import nn

from tta_apm.bench.backbone_state import backbone_state, changed_parts
from tta_apm.bench.process_state import ProcessState
from tta_apm.bench.randomness import Randomness

T = TypeVar("T")
MAX_NAMED = 3  # of the changed parts of a backbone, in an error


class MethodError(RuntimeError):
    """A method broke its contract, e.g. its logits have a wrong shape or are not finite."""


class IsolationError(MethodError):
    """A method changed what is not its own."""

    def __init__(self, changes: Sequence[str]) -> None:
        super().__init__(f"changed what is not its own: {'; '.join(changes)}")


class Guard:
    """Isolates the method of one run from everything that runs share.

    If a method changes the state of the process (ProcessState), the change is undone after the call
    and is an error. It may use the global random generators of Python, numpy and torch: inside its
    calls they are its own, seeded with the run's seed; `randomness.used` names those that it used.
    `check` finds changes of the backbone and threads that still run. A changed backbone cannot be
    restored: the caller must build a new one.

    The isolation is not complete: a method could still read the labels in its caller's memory or
    replace functions of a library.

    Args:
        seed: that of the random generators.
        backbone: the backbone that the method shares with others, in its initial state.
    """

    def __init__(self, seed: int, backbone: nn.Module | None = None) -> None:
        self.seed = seed
        self.backbone = backbone
        self.state = None if backbone is None else backbone_state(backbone)
        self.threads: set[threading.Thread] = set()  # those started inside calls
        self.restart()

    def restart(self) -> None:
        """Seed the random generators again."""
        self.randomness = Randomness(self.seed)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Return `function(*arguments)`, and restore the state of the process.

        Raises:
            IsolationError: if the function changed that state; caused by its own error, if any.
        """
        before, threads = ProcessState(), set(threading.enumerate())
        try:
            with self.randomness:
                result = function(*arguments)
        except BaseException as error:
            changes = before.restore()
            if changes and not isinstance(error, KeyboardInterrupt):
                raise IsolationError(changes) from error
            raise
        finally:
            self.threads |= set(threading.enumerate()) - threads
        changes = before.restore()
        if changes:
            raise IsolationError(changes)
        return result

    def check(self) -> None:
        """Raise IsolationError if the backbone has changed or a thread of a call still runs."""
        changes = [*self.backbone_changes(), *self._threads_left()]
        if changes:
            raise IsolationError(changes)

    def check_threads(self) -> None:
        """Raise IsolationError if a thread of a call still runs."""
        if changes := self._threads_left():
            raise IsolationError(changes)

    def with_backbone_changes(self, error: BaseException) -> BaseException:
        """`error`, or an IsolationError caused by it if the method has changed the backbone."""
        changes = self.backbone_changes()
        if not changes or isinstance(error, (IsolationError, KeyboardInterrupt)):
            return error
        changed = IsolationError(changes)
        changed.__cause__ = error
        return changed

    def backbone_changes(self) -> list[str]:
        """The changes of the backbone since the guard was made; empty if there are none."""
        if self.backbone is None or self.state is None:
            return []
        parts = changed_parts(self.state, backbone_state(self.backbone))
        more = f" and {len(parts) - MAX_NAMED} more" if len(parts) > MAX_NAMED else ""
        return [f"the shared backbone ({', '.join(parts[:MAX_NAMED])}{more})"] if parts else []

    def _threads_left(self) -> list[str]:
        """The threads of calls that would keep the process alive; those of executors do not."""
        return [f"the threads of the process ({thread.name} was left running)"
                for thread in self.threads - set(executors._threads_queues)
                if thread.is_alive() and not thread.daemon]
