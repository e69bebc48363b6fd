"""Run: one method over its streams, in a sweep or in somebody's Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tta_apm.bench import measure
from tta_apm.bench.batches import Handed, Loaded, batches_ahead
from tta_apm.bench.evaluate import Evaluation, Evaluator, checked_resolved, warm_up
from tta_apm.bench.isolation import Guard
from tta_apm.bench.shared_work import SharedWork
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import Batch, Stream
from tta_apm.method import Method


class Run:
    """A method that meets one stream after the other.

    Args:
        method: on `device`.
        guard: of its run.
        carries_on: whether a stream starts from the state that the one before it left.
        held_mb: what it holds of the device's memory.

    Attributes:
        gflops: per image, once the first stream was met; None where they are not counted.
        seconds: of its last batch.
    """

    def __init__(self, method: Method, guard: Guard, device: torch.device, carries_on: bool,
                 held_mb: float = 0.0) -> None:
        self.method = method
        self.guard = guard
        self.device = device
        self.carries_on = carries_on
        self.held_mb = held_mb
        self.gflops: float | None = None
        self.seconds = 0.0
        self._is_warm = False
        self._is_at_start = True

    def begin(self, stream: Stream, first: Loaded, shared: SharedWork | None = None,
              others_mb: float = 0.0) -> None:
        """Get ready for a stream: warm up on the first one's first batch, reset where the setting
        asks for it, show an offline method all images.

        Args:
            shared: what it shares with others, None for no company.
            others_mb: what others hold of the device's memory.

        Raises:
            MethodError, and whatever the method raises.
        """
        shared = shared or SharedWork((), self.device)
        self.evaluator = Evaluator(self.method, stream, self.device, self.guard, shared)
        with self._weighed():
            if not self._is_warm:
                batch = Batch(first.pixels.numpy(), first.indices)
                self.gflops = warm_up(self.method, [batch], self.device, self.guard)
                self._is_warm = True
            if self._is_at_start or not self.carries_on:
                self.guard.restart()
                self.guard.call(self.method.reset)
            self.evaluator.prepare(others_mb)
        self._is_at_start = False

    def turn(self, handed: Handed, others_mb: float = 0.0) -> int:
        """Adapt to the stream's next batch and predict it; returns how many are right.

        Args:
            others_mb: as of `begin`.

        Raises:
            as Evaluator.meet.
        """
        before = self.evaluator.seconds
        with self._weighed():
            correct = self.evaluator.meet(handed, others_mb)
        self.seconds = self.evaluator.seconds - before
        return correct

    @contextmanager
    def _weighed(self) -> Iterator[None]:
        """Adds to `held_mb` what is left in memory of the calls inside. On a CPU nothing is added:
        what is resident there says too little of one method among several."""
        if self.device.type == "cpu":
            yield
            return
        shared = self.evaluator.shared
        before = measure.memory_in_use_mb(self.device) - shared.size_mb
        yield
        self.held_mb += measure.memory_in_use_mb(self.device) - shared.size_mb - before

    def end(self) -> dict[Domain, Evaluation]:
        """What came of the stream.

        Raises:
            MethodError: for threads that were left running.
        """
        self.guard.check_threads()
        return self.evaluator.evaluations()

    def resolved(self) -> dict[str, Any]:
        """What the method chose itself of its hyper-parameters. MethodError for no such thing."""
        return checked_resolved(self.guard.call(getattr, self.method, "resolved"))

    def rewind(self) -> None:
        """Go back to the start: the next stream is met as the first was."""
        self._is_at_start = True

    def meet(self, stream: Stream,
             progress: Callable[[int, int], None] = lambda images, correct: None
             ) -> dict[Domain, Evaluation]:
        """Adapt to and predict all of a stream, in no company.

        Raises:
            MethodError: as Evaluator.meet, and whatever the method raises.
        """
        for index, batch in enumerate(batches_ahead(stream, self.device)):
            if index == 0:
                self.begin(stream, batch)
            progress(len(batch.indices), self.turn(Handed(batch, self.device)))
        self.guard.check()
        return self.end()
