"""Run: one method over its streams, in a sweep or in somebody's Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tta_apm.bench.evaluate import Evaluation, evaluate, warm_up
from tta_apm.bench.isolation import Guard
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import Stream
from tta_apm.method import Method


@dataclass
class Run:
    """A method that meets one stream after the other.

    Args:
        method: on `device`.
        guard: of its run.
        carries_on: whether a stream starts from the state that the one before it left.

    Attributes:
        gflops: per image, once the first stream was met; None where they are not counted.
    """

    method: Method
    guard: Guard
    device: torch.device
    carries_on: bool
    gflops: float | None = None
    started: bool = False

    def meet(self, stream: Stream,
             progress: Callable[[int, int], None] = lambda images, correct: None
             ) -> dict[Domain, Evaluation]:
        """Warm up before the first stream, reset where the setting asks for it, evaluate.

        Raises:
            MethodError: as `evaluate`, and whatever the method raises.
        """
        first, self.started = not self.started, True
        if first:
            self.gflops = warm_up(self.method, stream, self.device, self.guard)
        if first or not self.carries_on:
            self.guard.restart()
            self.guard.call(self.method.reset)
        evaluations = evaluate(self.method, stream, self.device, progress, self.guard)
        self.guard.check()
        return evaluations
