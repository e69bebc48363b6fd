"""Sweep: run the missing cells, rows side by side, one record each, and report on the way."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import find_kind
from tta_apm.bench.builder import Builder, RowError, explained
from tta_apm.bench.evaluate import Evaluation
from tta_apm.bench.isolation import MethodError, Trespass
from tta_apm.bench.one_pass import OnePass, Outcome, Spoiled
from tta_apm.bench.plan import Cell, order_of
from tta_apm.bench.progress import Progress
from tta_apm.bench.provenance import commit, versions
from tta_apm.bench.records import Record, hash_bytes, save_cell
from tta_apm.bench.run import Run
from tta_apm.bench.series import Collector, Series
from tta_apm.bench.shared_work import SharedWork
from tta_apm.bench.status import write_failures
from tta_apm.bench.together import Room, free_memory_mb
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.data.streams import Stream
from tta_apm.data.workers import set_num_workers
from tta_apm.device import choose_device, describe
from tta_apm.errors import UserError, beyond_the_machine
from tta_apm.names import clean, clean_lines

# Rows that run side by side.
Group = list[Series]


class Sweep:
    """The cells of a config that are yet to run.

    Rows of one seed meet the same streams. They run side by side as far as TOGETHER and the memory
    allow: each batch is fetched once and handed to every row that still wants it. A cell is
    recorded when its rows are through its domain. Every call into a method goes through a Guard, so
    that no row's numbers depend on the others.

    Args:
        cfg: as `config.load` gives it.
        cells: all that the config asks for, in order.
        todo: those of them to run.
        folder: of the results.
        dataset: whose domains the cells name.
    """

    def __init__(self, cfg: CfgNode, cells: Sequence[Cell], todo: Sequence[Cell],
                 folder: Path, dataset: DataSet) -> None:
        self.cfg = cfg
        self.cells = cells
        self.todo = {cell.name for cell in todo}
        self.folder = folder
        self.device = choose_device(cfg.DEVICE)
        self.dataset = dataset
        self.builder = Builder(cfg, dataset, self.device)
        self.failed: dict[str, str] = {}  # names of cells, with the reasons
        self.commit = commit()
        self.versions = versions()

    def run(self) -> list[str]:
        """Run the cells; returns the names of those that failed.

        Raises:
            UserError: before anything runs, for a backbone that cannot be built, and where no
                method can.
        """
        set_num_workers(0 if self.cfg.NUM_WORKERS == "auto" else int(self.cfg.NUM_WORKERS))
        every = [Series(list(cells), self.cfg.SETTING) for _, cells in groupby(
            self.cells, lambda cell: (cell.row, cell.seed))]
        every = [series for series in every if series.needed(self.todo)]
        room = Room(self.cfg.TOGETHER, free_memory_mb(self.device))
        self._check(every, room)
        write_failures(self.folder, {})
        total = sum(self._num_images(series, series.needed(self.todo)) for series in every)
        with Progress(total) as self.progress:
            groups = deque(self._groups(every, room))
            while groups:
                groups.extendleft(reversed(self._run(groups.popleft())))
        return list(self.failed)

    def _check(self, every: Sequence[Series], room: Room) -> None:
        """Build the method of each row: a bad setting is told now, not after an hour. A row that
        cannot be built fails alone, in its turn.

        The rows of the first group are kept, as building may take minutes. The others are
        released, as they would take memory from those that run.
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
            except MethodError:  # no setting is bad: the row fails by name in its turn
                continue
            if room.holds([self.builder.held_mb[other.row.text] for other in (*kept, series)]):
                kept.append(series)
            self.builder.keep(kept)
        for text, reason in broken.items():
            print(f"{clean(text)} fails, the other rows go on: {clean_lines(str(reason))}",
                  file=sys.stderr)

    def _groups(self, every: Sequence[Series], room: Room) -> Iterator[Group]:
        """The rows of each seed, in order, as many together as there is room for."""
        for seed in self.cfg.SEEDS:
            group: Group = []
            for series in every:
                if series.seed != seed:
                    continue
                held_mb = [self.builder.held_mb.get(other.row.text, 0.0)
                           for other in (*group, series)]
                if group and not room.holds(held_mb):
                    yield group
                    group = []
                group.append(series)
            if group:
                yield group

    def _run(self, group: Group) -> list[Group]:
        """Run rows side by side over their streams; returns those that must run later, in groups.
        """
        members, later = self._members(group)
        shared = SharedWork(_shared_backbones(members), self.device)
        indices = sorted({index for member in members for index in member.needed})
        for index in indices:
            present = [member for member in members if index in member.needed]
            if not present:
                continue
            try:
                later += self._pass(index, present, shared, may_part=index == indices[0])
            except Spoiled:
                for member in members:
                    self.builder.forget(member.run.guard.backbone)
                later += [[member.series] for member in members if member.needed]
                members = []
            self.progress.end()
            gone = {series for others in later for series in others}
            members = [member for member in members if member.needed and member.series not in gone]
        return later

    def _members(self, group: Group) -> tuple[list[Member], list[Group]]:
        """The rows of a group with their runs; and those for whom memory is too short beside the
        others. One that cannot be built fails by name."""
        self.builder.keep(group)
        cramped: list[Group] = []
        able = list(group)
        # Twice: a row that changes the backbone makes those built before it unusable.
        for series in [*group, *group]:
            if series not in able:
                continue
            try:
                self.builder.run_of(series)
            except (UserError, MethodError) as error:
                able.remove(series)
                if len(group) > 1 and error.__cause__ and beyond_the_machine(error.__cause__):
                    cramped.append([series])
                else:
                    self._fail_streams(series, series.needed(self.todo), error)
        self.progress.end()
        return [Member(series, self.builder.run_of(series), self.todo) for series in able], cramped

    def _pass(self, index: int, members: Sequence[Member], shared: SharedWork, *, may_part: bool
              ) -> list[Group]:
        """One stream for all that need it; returns the rows that must run later, in groups.

        Raises:
            Spoiled: see OnePass.
        """
        series = members[0].series
        stream = self._stream(series.streams[index], series.seed)
        self.progress.start([member.series.row for member in members], stream.domains)
        by_run = {member.run: member for member in members}
        one = OnePass(list(by_run), stream, self.device, shared, self.progress, may_part=may_part)
        for run, outcome in one.run().items():
            self._record(by_run[run], index, outcome)
        for run, error in one.failed.items():
            self._drop(by_run[run], index, error)
        for run in one.slow:
            run.rewind()
        for run in one.cramped:
            self.builder.release(by_run[run].series)
        slow = [by_run[run].series for run in one.slow]
        return [*([slow] if slow else []), *([by_run[run].series] for run in one.cramped)]

    def _stream(self, domains: Sequence[Domain], seed: int) -> Stream:
        return Stream(self.dataset, domains, num_images=self.cfg.NUM_IMAGES,
                      batch_size=self.cfg.BATCH_SIZE, seed=seed, order=self.cfg.ORDER,
                      concentration=self.cfg.DIRICHLET)

    def _num_images(self, series: Series, indices: Sequence[int]) -> int:
        """Of some of its streams."""
        count = self.cfg.NUM_IMAGES if self.cfg.NUM_IMAGES > 0 else len(self.dataset.labels)
        return count * sum(len(series.streams[index]) for index in indices)

    def _record(self, member: Member, index: int, outcome: Outcome) -> None:
        """Save the cells that a stream completes."""
        member.needed.remove(index)
        self.progress.settle(self._num_images(member.series, [index]))
        for domain, part in outcome.evaluations.items():
            evaluation = member.collector.add(domain, part)
            if evaluation is not None:
                self._finish(member.series.cells[domain], evaluation, outcome.resolved, member.run)

    def _finish(self, cell: Cell, evaluation: Evaluation, resolved: dict[str, Any], run: Run
                ) -> None:
        if cell.name in self.todo:
            try:
                self._save(cell, evaluation, resolved, run)
            except UserError:  # the disk: it fails all cells
                raise
            except Exception as error:
                self._fail(cell, error)
                return
            self.todo.remove(cell.name)
        self.progress.finish(cell, evaluation)

    def _drop(self, member: Member, index: int, error: BaseException) -> None:
        """A row failed in the stream at `index`: so do all streams that depend on that."""
        to_the_end = member.series.carries_on or isinstance(error, Trespass)
        lost = [other for other in member.needed if to_the_end or other == index]
        member.needed = [other for other in member.needed if other not in lost]
        self._fail_streams(member.series, lost, error)
        if member.run.guard.backbone_changes():
            self.builder.forget(member.run.guard.backbone)

    def _fail_streams(self, series: Series, indices: Sequence[int], error: BaseException) -> None:
        """Fail all domains of the streams at `indices`."""
        self.progress.settle(self._num_images(series, indices))
        for domain in dict.fromkeys(domain for index in indices
                                    for domain in series.streams[index]):
            self._fail(series.cells[domain], error)

    def _fail(self, cell: Cell, error: BaseException) -> None:
        self.progress.fail(cell, explained(error))
        # One that is there already was run through for its state only; and a domain that is visited
        # twice may fail twice.
        if cell.name in self.todo:
            self.todo.remove(cell.name)
            self.failed[cell.name] = explained(error)
            write_failures(self.folder, self.failed)

    def _save(self, cell: Cell, evaluation: Evaluation, resolved: dict[str, Any], run: Run) -> None:
        row, backbone = cell.row, run.guard.backbone
        assert isinstance(backbone, Backbone)
        predictions = evaluation.predictions
        content = predictions.to_bytes()
        record = Record(
            row=row.text, method=row.method,
            hyper_parameters={**row.hyper_parameters, **resolved},
            scope=row.scope, survives=row.survives, backbone=backbone.name,
            weights=backbone.weights,
            templates=self.builder.template_set if find_kind(row.needs).has_prompts else "",
            resolution=backbone.image_size or 0, dataset=self.dataset.name,
            corruption=cell.domain.corruption, severity=cell.domain.severity,
            images_from=self.dataset.describe(cell.domain), num_images=len(predictions.index),
            images_hash=evaluation.images_hash, setting=self.cfg.SETTING, order=order_of(self.cfg),
            batch_size=self.cfg.BATCH_SIZE, seed=cell.seed,
            num_correct=int(predictions.correct().sum()), seconds=evaluation.seconds,
            peak_memory_mb=evaluation.peak_memory_mb, gflops_per_image=run.gflops,
            device=describe(self.device), fingerprint=cell.fingerprint, code=cell.identity["code"],
            commit=self.commit, predictions_hash=hash_bytes(content), versions=self.versions,
            preprocessing=backbone.preprocessing, identity=cell.identity,
            did=dict(evaluation.did))
        save_cell(cell.path(self.folder), record, content)


class Member:
    """A row with a seed on its way through the streams of its group.

    Args:
        todo: names of the cells that are wanted.

    Attributes:
        needed: indices of the streams that are still to be met.
    """

    def __init__(self, series: Series, run: Run, todo: Collection[str]) -> None:
        self.series = series
        self.run = run
        self.needed = series.needed(todo)
        self.collector = Collector([series.streams[index] for index in self.needed])


def _shared_backbones(members: Sequence[Member]) -> list[Backbone]:
    """Those that several rows use."""
    users = Counter(member.run.guard.backbone for member in members)
    return [backbone for backbone, count in users.items()
            if count > 1 and isinstance(backbone, Backbone)]
