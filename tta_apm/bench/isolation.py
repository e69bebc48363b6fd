"""Guard: what stands around every call into a method, so that no row depends on its company."""

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
# So many of the parts that changed are named.
MAX_NAMED = 3


class MethodError(RuntimeError):
    """A method broke its contract: wrong shape, logits that are not finite, unknown details."""


class Trespass(MethodError):
    """A method changed what is not its own."""

    def __init__(self, changes: Sequence[str]) -> None:
        super().__init__(f"changed what is not its own: {'; '.join(changes)}")


class Guard:
    """Keeps the method of one run from all that others use.

    What a method sets of the process (ProcessState) is put back after the call and is an error.
    What it draws from the global random numbers of Python, numpy and torch is none: it draws from
    a stream of its own that begins at the run's seed, and nobody else's numbers move. The backbone
    and threads are looked at by `check`: a backbone that was changed cannot be put back, so that
    whoever catches the error must build it anew.

    One process cannot keep a method from everything, e.g. from the labels in the memory of its
    caller or from the functions of a library.

    Args:
        seed: of the random numbers.
        backbone: that the method shares with others, as it is before the first call.
    """

    def __init__(self, seed: int, backbone: nn.Module | None = None) -> None:
        self.seed = seed
        self.backbone = backbone
        self.state = None if backbone is None else backbone_state(backbone)
        self.threads: set[threading.Thread] = set()  # that were started in its calls
        self.restart()

    def restart(self) -> None:
        """Begin the random numbers at the seed again."""
        self.randomness = Randomness(self.seed)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """What `function(*arguments)` gives, with the process as it was.

        Raises:
            Trespass: if it set something of the process; from what it raised itself, if anything.
        """
        before, threads = ProcessState(), set(threading.enumerate())
        try:
            with self.randomness:
                result = function(*arguments)
        except BaseException as error:
            changes = before.restore()
            if changes and not isinstance(error, KeyboardInterrupt):
                raise Trespass(changes) from error
            raise
        finally:
            self.threads |= set(threading.enumerate()) - threads
        changes = before.restore()
        if changes:
            raise Trespass(changes)
        return result

    def check(self) -> None:
        """Raise Trespass if the backbone is no longer what it was or a thread was left running."""
        changes = [*self.backbone_changes(), *self._threads_left()]
        if changes:
            raise Trespass(changes)

    def check_threads(self) -> None:
        """Raise Trespass if one of the calls left a thread running."""
        if changes := self._threads_left():
            raise Trespass(changes)

    def blamed(self, error: BaseException) -> BaseException:
        """The error of a method in no company: with what it did to the backbone, if anything."""
        changes = self.backbone_changes()
        if not changes or isinstance(error, (Trespass, KeyboardInterrupt)):
            return error
        trespass = Trespass(changes)
        trespass.__cause__ = error
        return trespass

    def backbone_changes(self) -> list[str]:
        """What has changed in the backbone since the guard was made; empty if nothing has."""
        if self.backbone is None or self.state is None:
            return []
        parts = changed_parts(self.state, backbone_state(self.backbone))
        more = f" and {len(parts) - MAX_NAMED} more" if len(parts) > MAX_NAMED else ""
        return [f"the shared backbone ({', '.join(parts[:MAX_NAMED])}{more})"] if parts else []

    def _threads_left(self) -> list[str]:
        """Threads that would keep the process alive; those of executors end with it."""
        return [f"the threads of the process ({thread.name} was left running)"
                for thread in self.threads - set(executors._threads_queues)
                if thread.is_alive() and not thread.daemon]
