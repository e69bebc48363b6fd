"""Sweep: run missing cells, with rows side by side, and write a record for each."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.bench.builder import Builder, RowError, explained
from tta_apm.bench.claims import PRECOMPUTED, Claims, Taken
from tta_apm.bench.evaluate import Evaluation
from tta_apm.bench.grouping import Group, Grouping
from tta_apm.bench.isolation import IsolationError, MethodError
from tta_apm.bench.member import Member
from tta_apm.bench.one_pass import BackboneChanged, OnePass, Outcome
from tta_apm.bench.plan import Cell
from tta_apm.bench.progress import Progress
from tta_apm.bench.recorder import Recorder
from tta_apm.bench.run import Run
from tta_apm.bench.series import Series
from tta_apm.bench.shared_work import SharedWork
from tta_apm.bench.together import Room, free_memory_mb
from tta_apm.console import stop_if_asked
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.data.streams import Stream
from tta_apm.data.workers import set_num_workers
from tta_apm.device import choose_device
from tta_apm.errors import UserError, resource_error
from tta_apm.names import clean, clean_lines

WAIT_SECONDS = 0.5  # between checks whether other processes have left cells to run


class Sweep:
    """Runs the missing cells of a config.

    Rows of one seed have the same streams. They run side by side, as many as TOGETHER and the
    memory allow: each batch is loaded once and given to every row that needs it. A cell is recorded
    when its row has finished its domain. Every call into a method goes through a Guard, so that no
    row's numbers depend on the others.

    Args:
        cfg: the config, from `config.load`.
        cells: all cells of the config, in order.
        todo: the cells to run.
        folder: the results folder.
        dataset: the data set of the config.
        claims: this process's claims on the folder.
    """

    def __init__(self, cfg: CfgNode, cells: Sequence[Cell], todo: Sequence[Cell],
                 folder: Path, dataset: DataSet, claims: Claims) -> None:
        self.cfg = cfg
        self.cells = cells
        self.todo = {cell.name for cell in todo}
        self.folder = folder
        self.device = choose_device(cfg.DEVICE)
        self.dataset = dataset
        self.claims = claims
        self.builder = Builder(cfg, dataset, self.device, folder / PRECOMPUTED)
        self.failed: dict[str, str] = {}  # names of cells, with the reasons
        self.recorder = Recorder(cfg, folder, dataset, self.device, self.builder.template_set)

    def run(self) -> dict[str, str]:
        """Run the cells that no other process runs, and wait until all are recorded or failed.

        Returns:
            The names of the cells that failed, with the reasons.

        Raises:
            UserError: before anything runs, if a backbone or all methods cannot be built.
        """
        set_num_workers(0 if self.cfg.NUM_WORKERS == "auto" else int(self.cfg.NUM_WORKERS))
        every = [series for series in Series.of(self.cells, self.cfg.SETTING)
                 if series.needed(self.todo)]
        room = Room(self.cfg.TOGETHER, free_memory_mb(self.device))
        self.grouping = Grouping(self.cfg.SEEDS, room, self.builder.held_mb)
        # Online rows would have to wait until an offline row has seen all images of a domain.
        self.grouping.slowness.update(series for series in every if series.row.scope == "domain")
        if self.claims.is_first:
            self._check(every)
        total = sum(self._num_images(series, series.needed(self.todo)) for series in every)
        with Progress(total) as self.progress:
            while self.todo:
                stop_if_asked()
                self.has_taken = False
                groups = deque(self.grouping.groups(every, self.todo))
                while groups:
                    later = self._run_group(groups.popleft())
                    groups.extendleft(reversed([*self.grouping.groups(later, self.todo)]))
                if self.todo and not self.has_taken:  # other processes run all that is left
                    self.progress.wait(len(self.todo))
                    time.sleep(WAIT_SECONDS)
        return {cell.name: self.failed[cell.name] for cell in self.cells
                if cell.name in self.failed}

    def _check(self, every: Sequence[Series]) -> None:
        """Build the method of each row, so that errors are reported now and not after hours.

        A row that cannot be built is reported here and fails later by itself. The first rows that
        fit side by side are kept, since building may take minutes; the others are released, to
        leave the memory to the rows that run.
        """
        kept: Group = []
        firsts: dict[str, Series] = {}
        for series in every:
            firsts.setdefault(series.row.text, series)
        broken: dict[str, RowError] = {}
        for series in firsts.values():
            try:
                self.builder.run_of(series)
            except RowError as error:
                broken[series.row.text] = error
                if len(broken) == len(firsts):
                    raise next(iter(broken.values()))
                continue
            except MethodError:  # not an error of the config: the row fails when it runs
                continue
            if self.grouping.fits([*kept, series]):
                kept.append(series)
            self.builder.keep(kept)
        for text, reason in broken.items():
            print(f"{clean(text)} fails, the other rows go on: {clean_lines(str(reason))}",
                  file=sys.stderr)

    def _run_group(self, group: Group) -> list[Series]:
        """Run rows side by side over the units that no other process runs.

        Returns:
            The rows that must run later, because they are slow or must run alone.
        """
        self.builder.keep(group)
        slowness = self.grouping.slowness[group[0]]
        together = list(group)
        members: list[Member] = []
        may_split = True
        for index in range(len(group[0].streams)):
            members += self._members(self._take(together, index), alone=len(group) == 1)
            present = [member for member in members if index in member.needed]
            if not present:
                continue
            shared = SharedWork(_shared_backbones(present), self.device)
            try:
                self._run_stream(index, present, shared, may_split=may_split)
            except BackboneChanged:
                for member in members:
                    self.builder.forget(member.run.guard.backbone)
                    self._release(member)
                self.grouping.alone.update(together)
                break
            finally:
                self.progress.end()
            may_split = False
            members = [member for member in members if member.needed]
            leaving = self.grouping.must_leave(group, slowness)
            together = [series for series in together if series not in leaving]
        return self.grouping.must_leave(group, slowness)

    def _take(self, group: Group, index: int) -> list[tuple[Series, list[int]]]:
        """Claim the group's units that begin with the stream at `index`; returns the claimed ones,
        each with its row."""
        self.claims.me.device = str(self.device)
        open_units = [(series, unit) for series in group for unit in series.units(self.todo)]
        wanted = [(series, unit) for series, unit in open_units if unit[0] == index]
        if not wanted:
            return []
        taken = self.claims.take([series.names(unit, self.todo) for series, unit in wanted],
                                 {series.names(unit, self.todo) for series, unit in open_units})
        self._skip_done(taken)
        self.has_taken |= bool(taken.units)
        return [wanted[number] for number in taken.units]

    def _skip_done(self, taken: Taken) -> None:
        """Remove the cells from `todo` that other processes have recorded or failed."""
        elsewhere = self.todo & {*taken.done, *taken.failed}
        self.todo -= elsewhere
        self.failed.update({name: taken.failed[name] for name in elsewhere & {*taken.failed}})
        self.progress.count_finished(self.num_images * len(elsewhere))

    def _members(self, taken: Sequence[tuple[Series, list[int]]], *, alone: bool) -> list[Member]:
        """Build the runs of claimed units. A row that cannot be built fails; one that lacks memory
        beside the others is run later, alone."""
        able = list(taken)
        # Twice, since a row that changes the backbone releases the runs that were built before.
        for series, unit in [*taken, *taken]:
            if (series, unit) not in able:
                continue
            try:
                self.builder.run_of(series)
            except (UserError, MethodError) as error:
                able.remove((series, unit))
                if not alone and error.__cause__ and resource_error(error.__cause__):
                    self.grouping.alone.add(series)
                    self.claims.release(series.names(unit, self.todo))
                else:
                    self._fail_streams(series, series.needed(self.todo), error)
        self.progress.end()
        return [Member(series, self.builder.run_of(series), unit) for series, unit in able]

    def _run_stream(self, index: int, members: Sequence[Member], shared: SharedWork, *,
                    may_split: bool) -> None:
        """Run the stream at `index` for all members.

        Raises:
            BackboneChanged: as OnePass.
        """
        series = members[0].series
        stream = self._stream(series.streams[index], series.seed)
        self.progress.start([member.series.row for member in members], stream.domains)
        by_run = {member.run: member for member in members}
        one = OnePass(list(by_run), stream, self.device, shared, self.progress, may_split=may_split)
        outcomes = one.run()
        for run, member in by_run.items():
            self.progress.note_generators(member.series.row, run.guard.randomness.used)
        for run, outcome in outcomes.items():
            self._record(by_run[run], index, outcome)
        for run, error in one.failed.items():
            self._drop(by_run[run], index, error)
        for run in one.slow:
            run.rewind()
            self.grouping.slowness[by_run[run].series] += 1
            self._release(by_run[run])
        for run in one.out_of_memory:
            self.builder.release(by_run[run].series)
            self.grouping.alone.add(by_run[run].series)
            self._release(by_run[run])

    def _release(self, member: Member) -> None:
        """Give up the claim on the rest of a unit, to run it later or leave it to others."""
        self.claims.release(member.series.names(member.needed, self.todo))
        member.needed = []

    def _stream(self, domains: Sequence[Domain], seed: int) -> Stream:
        return Stream(self.dataset, domains, num_images=self.cfg.NUM_IMAGES,
                      batch_size=self.cfg.BATCH_SIZE, seed=seed, order=self.cfg.ORDER,
                      concentration=self.cfg.DIRICHLET)

    @property
    def num_images(self) -> int:
        """The number of images of a domain."""
        return self.cfg.NUM_IMAGES if self.cfg.NUM_IMAGES > 0 else len(self.dataset.labels)

    def _num_images(self, series: Series, indices: Sequence[int]) -> int:
        """The number of images in some streams of a series."""
        return self.num_images * sum(len(series.streams[index]) for index in indices)

    def _record(self, member: Member, index: int, outcome: Outcome) -> None:
        """Save the cells that a stream completes."""
        member.needed.remove(index)
        self.progress.count_finished(self._num_images(member.series, [index]))
        for domain, part in outcome.evaluations.items():
            evaluation = member.collector.add(domain, part)
            if evaluation is not None:
                self._finish(member.series.cells[domain], evaluation, outcome.resolved, member.run)

    def _finish(self, cell: Cell, evaluation: Evaluation, resolved: dict[str, Any], run: Run
                ) -> None:
        if cell.name in self.todo:
            try:
                self.recorder.save(cell, evaluation, resolved, run,
                                   crowded=self.claims.is_crowded)
            except UserError:  # a full disk would fail all cells
                raise
            except Exception as error:
                self._fail(cell, error)
                return
            self.todo.remove(cell.name)
            self.claims.finish(cell.name)
        self.progress.finish(cell, evaluation)

    def _drop(self, member: Member, index: int, error: BaseException) -> None:
        """Fail a row in the stream at `index` and in all streams that depend on it."""
        lost = [index]
        if isinstance(error, IsolationError):
            lost = member.series.needed(self.todo)
        elif member.series.carries_state:
            lost = list(member.needed)
        member.needed = [other for other in member.needed if other not in lost]
        self._fail_streams(member.series, lost, error)
        if member.run.guard.backbone_changes():
            self.builder.forget(member.run.guard.backbone)

    def _fail_streams(self, series: Series, indices: Sequence[int], error: BaseException) -> None:
        """Fail the cells of the streams at `indices`."""
        self.progress.count_finished(self._num_images(series, indices))
        for domain in dict.fromkeys(domain for index in indices
                                    for domain in series.streams[index]):
            self._fail(series.cells[domain], error)

    def _fail(self, cell: Cell, error: BaseException) -> None:
        self.progress.fail(cell, explained(error))
        if cell.name in self.todo:  # else it was run for its state only, or has failed before
            self.todo.remove(cell.name)
            self.failed[cell.name] = explained(error)
            self.claims.fail(cell.name, explained(error))


def _shared_backbones(members: Sequence[Member]) -> list[Backbone]:
    """The backbones that several members use."""
    users = Counter(member.run.guard.backbone for member in members)
    return [backbone for backbone, count in users.items()
            if count > 1 and isinstance(backbone, Backbone)]
