"""OnePass: several runs side by side over one stream, whose batches are loaded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from tta_apm.bench import measure
from tta_apm.bench.batches import BatchOnDevice, LoadedBatch, batches_ahead
from tta_apm.bench.evaluate import Evaluation
from tta_apm.bench.isolation import IsolationError
from tta_apm.bench.run import Run
from tta_apm.bench.shared_work import SharedWork
from tta_apm.bench.together import slow_rows
from tta_apm.console import stop_if_asked
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import Stream
from tta_apm.errors import resource_error


class BackboneChanged(Exception):
    """One of several runs has changed their backbone: all results of the stream are invalid."""


class Outcome(NamedTuple):
    """The results of a run on a stream.

    Args:
        evaluations: one for each domain.
        resolved: see Method.resolved.
    """

    evaluations: dict[Domain, Evaluation]
    resolved: dict[str, Any]


class Watcher(Protocol):
    """Is informed of the progress of a pass."""

    def update(self, images: int, correct: int) -> None:
        """A run has predicted `images` more images, `correct` of them right."""


class OnePass:
    """Runs that go through a stream together: each batch is given to one run after the other.

    A run that raises, or breaks its contract, drops out; the others go on. The backbone is checked
    after the first batch, at the end, and when a run fails. If it has changed, all runs of the pass
    must start again, each alone, so that it is known which one changes it.

    Args:
        runs: the runs, all of one seed, in the order of their calls.
        shared: the results of the backbone that they share.
        may_split: whether slow runs leave the pass after the first batch (see together.slow_rows).

    Attributes:
        failed: the runs that dropped out, with their errors.
        slow: the slow runs that left, to be run together later.
        out_of_memory: the runs that lacked memory beside the others, to be run alone later.
    """

    def __init__(self, runs: Sequence[Run], stream: Stream, device: torch.device,
                 shared: SharedWork, watcher: Watcher, *, may_split: bool) -> None:
        self.runs = list(runs)
        self.stream = stream
        self.device = device
        self.shared = shared
        self.watcher = watcher
        self.may_split = may_split
        self.failed: dict[Run, BaseException] = {}
        self.slow: list[Run] = []
        self.out_of_memory: list[Run] = []

    def run(self) -> dict[Run, Outcome]:
        """Run the pass; returns the results of the runs that went through the whole stream.

        Raises:
            BackboneChanged: if one of several runs has changed the backbone.
        """
        batches = batches_ahead(self.stream, self.device)
        start = time.perf_counter()
        for index, batch in enumerate(batches):
            fetching = time.perf_counter() - start
            if index == 0:
                self._each(lambda run: run.begin(self.stream, batch, self.shared,
                                                 self._held_by_others(run)))
            self._step(batch)
            if index == 0:
                self._check_backbones()
                self._split_off_slow(fetching, len(batch.indices))
            if not self.runs:
                break
            start = time.perf_counter()
        self._check_backbones()
        found: dict[Run, Outcome] = {}
        self._each(lambda run: found.update({run: Outcome(run.end(), run.resolved())}))
        return found

    def _step(self, batch: LoadedBatch) -> None:
        on_device = BatchOnDevice(batch, self.device)

        def step(run: Run) -> None:
            if self.shared.images is not on_device.images:  # a new batch, or one that was restored
                self.shared.begin(on_device.images)
            correct = run.step(on_device, self._held_by_others(run))
            self.watcher.update(len(on_device), correct)

        self._each(step)
        self.shared.end()

    def _each(self, call: Callable[[Run], object]) -> None:
        """Call each run in order; those that fail drop out."""
        for run in list(self.runs):
            try:
                stop_if_asked()
                call(run)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a method may raise anything, even SystemExit
                self._drop(run, error)

    def _drop(self, run: Run, error: BaseException) -> None:
        has_others = self._has_others()
        if has_others and run.guard.backbone_changes():
            raise BackboneChanged from error
        self.runs.remove(run)
        error = run.guard.with_backbone_changes(error)
        if has_others and resource_error(error):
            self.out_of_memory.append(run)
        else:
            self.failed[run] = error

    def _has_others(self) -> bool:
        return len(self.runs) + len(self.failed) + len(self.slow) + len(self.out_of_memory) > 1

    def _check_backbones(self) -> None:
        """Check the runs' backbones for changes, each once."""
        for run in {id(run.guard.backbone): run for run in self.runs}.values():
            if changes := run.guard.backbone_changes():
                if self._has_others():
                    raise BackboneChanged
                self._drop(run, IsolationError(changes))

    def _split_off_slow(self, fetching: float, num_images: int) -> None:
        """Move the slow runs to `slow`."""
        if not self.may_split:
            return
        slow = slow_rows(fetching, [run.seconds for run in self.runs],
                         len(self.stream) / num_images)
        self.slow += [run for index, run in enumerate(self.runs) if index in slow]
        self.runs = [run for index, run in enumerate(self.runs) if index not in slow]

    def _held_by_others(self, run: Run) -> float:
        """The device memory of all other runs and their backbones, in MiB."""
        others = [other for other in (*self.runs, *self.slow, *self.out_of_memory)
                  if other is not run]
        backbones = {other.guard.backbone for other in others} - {run.guard.backbone, None}
        return (sum(other.held_mb for other in others)
                + sum(measure.size_mb(backbone) for backbone in backbones if backbone))
