"""Run: one method over its streams, in a sweep or through the Python interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tta_apm.bench import measure
from tta_apm.bench.batches import BatchOnDevice, LoadedBatch, batches_ahead
from tta_apm.bench.checks import checked_resolved
from tta_apm.bench.evaluate import Evaluation, Evaluator, warm_up
from tta_apm.bench.isolation import Guard
from tta_apm.bench.shared_work import SharedWork
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import Batch, Stream
from tta_apm.method import Method


class Run:
    """Runs a method over one stream after the other.

    Args:
        method: on `device`.
        guard: isolates its calls.
        carries_state: whether a stream starts from the state after the previous one.
        held_mb: the device memory that the method holds, in MiB.

    Attributes:
        gflops: per image, after the first stream; None if they are not counted.
        seconds: those of the last batch.
    """

    def __init__(self, method: Method, guard: Guard, device: torch.device, carries_state: bool,
                 held_mb: float = 0.0) -> None:
        self.method = method
        self.guard = guard
        self.device = device
        self.carries_state = carries_state
        self.held_mb = held_mb
        self.gflops: float | None = None
        self.seconds = 0.0
        self._is_warm = False
        self._is_at_start = True

    def begin(self, stream: Stream, first: LoadedBatch, shared: SharedWork | None = None,
              others_mb: float = 0.0) -> None:
        """Begin a stream: warm up if it is the first one, reset if the setting asks for it, and let
        an offline method adapt to all images.

        Args:
            first: the first batch of the stream.
            shared: the backbone's results that are shared with other runs; None without others.
            others_mb: the device memory of other methods, in MiB.

        Raises:
            MethodError: if the method breaks its contract.
            Exception: whatever the method raises.
        """
        shared = shared or SharedWork((), self.device)
        self.evaluator = Evaluator(self.method, stream, self.device, self.guard, shared)
        with self._weighed():
            if not self._is_warm:
                batch = Batch(first.pixels.numpy(), first.indices)
                self.gflops = warm_up(self.method, [batch], self.device, self.guard)
                self._is_warm = True
            if self._is_at_start or not self.carries_state:
                self.guard.restart()
                self.guard.call(self.method.reset)
            self.evaluator.prepare(others_mb)
        self._is_at_start = False

    def step(self, batch: BatchOnDevice, others_mb: float = 0.0) -> int:
        """Adapt to the stream's next batch and predict it; returns the number of right predictions.

        Args:
            others_mb: as for `begin`.

        Raises:
            MethodError, Exception: as Evaluator.step.
        """
        before = self.evaluator.seconds
        with self._weighed():
            correct = self.evaluator.step(batch, others_mb)
        self.seconds = self.evaluator.seconds - before
        return correct

    @contextmanager
    def _weighed(self) -> Iterator[None]:
        """Add the memory that calls inside the `with` block leave allocated to `held_mb`.

        On a CPU nothing is added: resident memory cannot be attributed to one of several methods.
        """
        if self.device.type == "cpu":
            yield
            return
        shared = self.evaluator.shared
        before = measure.memory_in_use_mb(self.device) - shared.size_mb
        yield
        self.held_mb += measure.memory_in_use_mb(self.device) - shared.size_mb - before

    def end(self) -> dict[Domain, Evaluation]:
        """End a stream; returns the results for each of its domains.

        Raises:
            MethodError: if a thread of the method still runs.
        """
        self.guard.check_threads()
        return self.evaluator.evaluations()

    def resolved(self) -> dict[str, Any]:
        """See Method.resolved; MethodError if a record cannot hold it."""
        return checked_resolved(self.guard.call(getattr, self.method, "resolved"))

    def rewind(self) -> None:
        """Go back to the start: the next stream begins with a reset."""
        self._is_at_start = True

    def evaluate(self, stream: Stream,
                 progress: Callable[[int, int], None] = lambda images, correct: None
                 ) -> dict[Domain, Evaluation]:
        """Adapt to and predict a whole stream, without other runs.

        Args:
            progress: called after each batch with its numbers of images and of right predictions.

        Raises:
            MethodError, Exception: as Evaluator.step.
        """
        for index, batch in enumerate(batches_ahead(stream, self.device)):
            if index == 0:
                self.begin(stream, batch)
            progress(len(batch.indices), self.step(BatchOnDevice(batch, self.device)))
        self.guard.check()
        return self.end()
