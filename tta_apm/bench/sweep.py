"""Sweep: run the missing cells, rows side by side, one record each, and report on the way."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import find_kind
from tta_apm.bench.builder import Builder, RowError, explained
from tta_apm.bench.claims import ONCE, Claims, Taken
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
from tta_apm.bench.together import Room, free_memory_mb
from tta_apm.console import stop_if_asked
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.data.streams import Stream
from tta_apm.data.workers import set_num_workers
from tta_apm.device import choose_device, describe
from tta_apm.errors import UserError, resource_error
from tta_apm.names import clean, clean_lines

# Rows that run side by side.
Group = list[Series]
WAIT_SECONDS = 0.5  # between looks at what other processes have left


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
        claims: of this process on the folder.
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
        self.builder = Builder(cfg, dataset, self.device, folder / ONCE)
        self.failed: dict[str, str] = {}  # names of cells, with the reasons
        self.slowness: Counter[Series] = Counter()  # how often a row has left the quicker ones
        self.alone: set[Series] = set()  # rows that find no room beside others, or spoil theirs
        self.commit = commit()
        self.versions = versions()

    def run(self) -> dict[str, str]:
        """Run the cells, as far as no other process does; returns once all are recorded or failed:
        the names of those that failed, with the reasons.

        Raises:
            UserError: before anything runs, for a backbone that cannot be built, and where no
                method can.
        """
        set_num_workers(0 if self.cfg.NUM_WORKERS == "auto" else int(self.cfg.NUM_WORKERS))
        every = [series for series in Series.of(self.cells, self.cfg.SETTING)
                 if series.needed(self.todo)]
        # An offline row would have the online ones wait until it has seen all images of a domain.
        self.slowness.update(series for series in every if series.row.scope == "domain")
        room = Room(self.cfg.TOGETHER, free_memory_mb(self.device))
        if self.claims.is_first:
            self._check(every, room)
        total = sum(self._num_images(series, series.needed(self.todo)) for series in every)
        with Progress(total) as self.progress:
            while self.todo:
                stop_if_asked()
                self.has_taken = False
                groups = deque(self._groups(every, room))
                while groups:
                    later = self._run(groups.popleft())
                    groups.extendleft(reversed([*self._groups(later, room)]))
                if self.todo and not self.has_taken:  # others are at it
                    self.progress.wait(len(self.todo))
                    time.sleep(WAIT_SECONDS)
        return {cell.name: self.failed[cell.name] for cell in self.cells
                if cell.name in self.failed}

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
        """The rows of each seed that are yet to run, in order, as many together as there is room
        for; but slow rows apart from quick ones, and alone those that could not be together."""
        left = [series for series in every if series.needed(self.todo)]
        for seed, slowness in sorted({(series.seed, self.slowness[series]) for series in left},
                                     key=lambda key: (self.cfg.SEEDS.index(key[0]), key[1])):
            group: Group = []
            for series in left:
                if (series.seed, self.slowness[series]) != (seed, slowness):
                    continue
                if series in self.alone:
                    yield [series]
                    continue
                held_mb = [self.builder.held_mb.get(other.row.text, 0.0)
                           for other in (*group, series)]
                if group and not room.holds(held_mb):
                    yield group
                    group = []
                group.append(series)
            if group:
                yield group

    def _run(self, group: Group) -> list[Series]:
        """Run rows side by side over their streams, as far as no other process has them; returns
        those that must run later, apart from the others."""
        self.builder.keep(group)
        slowness = self.slowness[group[0]]
        together = list(group)
        members: list[Member] = []
        may_part = True
        for index in range(len(group[0].streams)):
            members += self._members(self._take(together, index), alone=len(group) == 1)
            present = [member for member in members if index in member.needed]
            if not present:
                continue
            shared = SharedWork(_shared_backbones(present), self.device)
            try:
                self._pass(index, present, shared, may_part=may_part)
            except Spoiled:
                for member in members:
                    self.builder.forget(member.run.guard.backbone)
                    self._give_back(member)
                self.alone.update(together)
                break
            finally:
                self.progress.end()
            may_part = False
            members = [member for member in members if member.needed]
            together = [series for series in together if self.slowness[series] == slowness
                        and (series not in self.alone or len(group) == 1)]
        return [series for series in group if self.slowness[series] > slowness
                or series in self.alone and len(group) > 1]

    def _take(self, group: Group, index: int) -> list[tuple[Series, list[int]]]:
        """The rows of a group that have a unit which begins with the stream at `index` and is not
        another process's, each with the unit."""
        self.claims.me.device = str(self.device)
        open_units = [(series, unit) for series in group for unit in series.units(self.todo)]
        wanted = [(series, unit) for series, unit in open_units if unit[0] == index]
        if not wanted:
            return []
        taken = self.claims.take([series.names(unit, self.todo) for series, unit in wanted],
                                 {series.names(unit, self.todo) for series, unit in open_units})
        self._heed(taken)
        self.has_taken |= bool(taken.units)
        return [wanted[place] for place in taken.units]

    def _heed(self, taken: Taken) -> None:
        """Leave to others what they have done."""
        elsewhere = self.todo & {*taken.done, *taken.failed}
        self.todo -= elsewhere
        self.failed.update({name: taken.failed[name] for name in elsewhere & {*taken.failed}})
        self.progress.settle(self.num_images * len(elsewhere))

    def _members(self, taken: Sequence[tuple[Series, list[int]]], *, alone: bool) -> list[Member]:
        """The rows with their runs. One that cannot be built fails by name; one that finds too
        little memory beside the others is left for later."""
        able = list(taken)
        # Twice: a row that changes the backbone makes those built before it unusable.
        for series, unit in [*taken, *taken]:
            if (series, unit) not in able:
                continue
            try:
                self.builder.run_of(series)
            except (UserError, MethodError) as error:
                able.remove((series, unit))
                if not alone and error.__cause__ and resource_error(error.__cause__):
                    self.alone.add(series)
                    self.claims.release(series.names(unit, self.todo))
                else:
                    self._fail_streams(series, series.needed(self.todo), error)
        self.progress.end()
        return [Member(series, self.builder.run_of(series), unit) for series, unit in able]

    def _pass(self, index: int, members: Sequence[Member], shared: SharedWork, *, may_part: bool
              ) -> None:
        """One stream for all that need it.

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
            self.slowness[by_run[run].series] += 1
            self._give_back(by_run[run])
        for run in one.cramped:
            self.builder.release(by_run[run].series)
            self.alone.add(by_run[run].series)
            self._give_back(by_run[run])

    def _give_back(self, member: Member) -> None:
        """Leave what is yet to come of a unit for later, or for others."""
        self.claims.release(member.series.names(member.needed, self.todo))
        member.needed = []

    def _stream(self, domains: Sequence[Domain], seed: int) -> Stream:
        return Stream(self.dataset, domains, num_images=self.cfg.NUM_IMAGES,
                      batch_size=self.cfg.BATCH_SIZE, seed=seed, order=self.cfg.ORDER,
                      concentration=self.cfg.DIRICHLET)

    @property
    def num_images(self) -> int:
        """Of a domain."""
        return self.cfg.NUM_IMAGES if self.cfg.NUM_IMAGES > 0 else len(self.dataset.labels)

    def _num_images(self, series: Series, indices: Sequence[int]) -> int:
        """Of some of its streams."""
        return self.num_images * sum(len(series.streams[index]) for index in indices)

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
            self.claims.finish(cell.name)
        self.progress.finish(cell, evaluation)

    def _drop(self, member: Member, index: int, error: BaseException) -> None:
        """A row failed in the stream at `index`: so do all streams that depend on that."""
        lost = [index]
        if isinstance(error, Trespass):
            lost = member.series.needed(self.todo)
        elif member.series.carries_on:
            lost = list(member.needed)
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
            self.claims.fail(cell.name, explained(error))

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
            did=dict(evaluation.did),
            crowded=self.claims.is_crowded)
        save_cell(cell.path(self.folder), record, content)


class Member:
    """A row with a seed on its way through the streams of a unit.

    Args:
        unit: indices of the streams.

    Attributes:
        needed: indices of the streams that are still to be met.
    """

    def __init__(self, series: Series, run: Run, unit: Sequence[int]) -> None:
        self.series = series
        self.run = run
        self.needed = list(unit)
        self.collector = Collector([series.streams[index] for index in self.needed])


def _shared_backbones(members: Sequence[Member]) -> list[Backbone]:
    """Those that several rows use."""
    users = Counter(member.run.guard.backbone for member in members)
    return [backbone for backbone, count in users.items()
            if count > 1 and isinstance(backbone, Backbone)]
