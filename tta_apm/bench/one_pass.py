"""One pass: several runs side by side over one stream, whose batches are fetched once for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from tta_apm.bench import measure
from tta_apm.bench.batches import Handed, Loaded, batches_ahead
from tta_apm.bench.evaluate import Evaluation
from tta_apm.bench.isolation import Trespass
from tta_apm.bench.run import Run
from tta_apm.bench.shared_work import SharedWork
from tta_apm.bench.together import slow_ones
from tta_apm.console import stop_if_asked
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import Stream
from tta_apm.errors import resource_error


class Spoiled(Exception):
    """The backbone was changed by one of several runs: nothing of the stream can be trusted."""


class Outcome(NamedTuple):
    """What came of a stream.

    Args:
        resolved: hyper-parameters that the method chose itself.
    """

    evaluations: dict[Domain, Evaluation]
    resolved: dict[str, Any]


class Watcher(Protocol):
    """What is told of a pass while it goes on."""

    def update(self, images: int, correct: int) -> None:
        """A run has met so many images, of which it got so many right."""


class OnePass:
    """Runs that meet a stream together, batch by batch, each in its turn.

    A run that raises, or breaks its contract, drops out by itself. One that changes the backbone
    is found at the end of the first batch or of the stream, or when another one fails of it;
    whoever was in its company has to begin anew, alone, where the one who did it is known.

    Args:
        runs: in the order of their turns; of one seed.
        shared: what they share of their work.
        may_part: whether slow runs leave the pass after the first batch (see together.slow_ones).

    Attributes:
        failed: what those raised that dropped out.
        slow: those that left, to be run together later.
        cramped: those that found too little memory beside the others, to be run alone later.
    """

    def __init__(self, runs: Sequence[Run], stream: Stream, device: torch.device,
                 shared: SharedWork, watcher: Watcher, *, may_part: bool) -> None:
        self.runs = list(runs)
        self.stream = stream
        self.device = device
        self.shared = shared
        self.watcher = watcher
        self.may_part = may_part
        self.failed: dict[Run, BaseException] = {}
        self.slow: list[Run] = []
        self.cramped: list[Run] = []

    def run(self) -> dict[Run, Outcome]:
        """What came of the stream, for those that met all of it.

        Raises:
            Spoiled: if the backbone was changed and it is not known by whom.
        """
        batches = batches_ahead(self.stream, self.device)
        start = time.perf_counter()
        for index, batch in enumerate(batches):
            fetching = time.perf_counter() - start
            if index == 0:
                self._each(lambda run: run.begin(self.stream, batch, self.shared,
                                                 self._held_by_others(run)))
            self._meet(batch)
            if index == 0:
                self._check_backbones()
                self._part(fetching, len(batch.indices))
            if not self.runs:
                break
            start = time.perf_counter()
        self._check_backbones()
        found: dict[Run, Outcome] = {}
        self._each(lambda run: found.update({run: Outcome(run.end(), run.resolved())}))
        return found

    def _meet(self, batch: Loaded) -> None:
        handed = Handed(batch, self.device)

        def turn(run: Run) -> None:
            if self.shared.images is not handed.images:  # new, or whole again
                self.shared.begin(handed.images)
            correct = run.turn(handed, self._held_by_others(run))
            self.watcher.update(len(handed), correct)

        self._each(turn)
        self.shared.end()

    def _each(self, call: Callable[[Run], object]) -> None:
        """Call each run in its turn; those that fail drop out."""
        for run in list(self.runs):
            try:
                stop_if_asked()
                call(run)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a stranger's method may raise anything, exit as well
                self._drop(run, error)

    def _drop(self, run: Run, error: BaseException) -> None:
        in_company = self._in_company()
        if in_company and run.guard.backbone_changes():
            raise Spoiled from error
        self.runs.remove(run)
        error = run.guard.blamed(error)
        if in_company and resource_error(error):
            self.cramped.append(run)
        else:
            self.failed[run] = error

    def _in_company(self) -> bool:
        return len(self.runs) + len(self.failed) + len(self.slow) + len(self.cramped) > 1

    def _check_backbones(self) -> None:
        """Find out whether the runs' backbones are what they were: once each, not for each run."""
        for run in {id(run.guard.backbone): run for run in self.runs}.values():
            if changes := run.guard.backbone_changes():
                if self._in_company():
                    raise Spoiled
                self._drop(run, Trespass(changes))

    def _part(self, fetching: float, num_images: int) -> None:
        """Let slow runs go."""
        if not self.may_part:
            return
        slow = slow_ones(fetching, [run.seconds for run in self.runs],
                         len(self.stream) / num_images)
        self.slow += [run for index, run in enumerate(self.runs) if index in slow]
        self.runs = [run for index, run in enumerate(self.runs) if index not in slow]

    def _held_by_others(self, run: Run) -> float:
        """In MiB, of the device's memory."""
        others = [other for other in (*self.runs, *self.slow, *self.cramped) if other is not run]
        backbones = {other.guard.backbone for other in others} - {run.guard.backbone, None}
        return (sum(other.held_mb for other in others)
                + sum(measure.size_mb(backbone) for backbone in backbones if backbone))
