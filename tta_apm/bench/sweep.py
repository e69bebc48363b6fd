"""Sweep: run the missing cells, one record each, and report on the way."""

from __future__ import annotations

import gc
import math
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build, find_kind
from tta_apm.backbones.clip_templates import templates
from tta_apm.backbones.image_tower import suited
from tta_apm.bench import measure
from tta_apm.bench.evaluate import Evaluation, SourceImages
from tta_apm.bench.isolation import Guard, MethodError, Trespass
from tta_apm.bench.plan import Cell, carries_on, order_of
from tta_apm.bench.progress import Progress
from tta_apm.bench.provenance import commit, versions
from tta_apm.bench.records import Record, hash_bytes, save_cell
from tta_apm.bench.run import Run
from tta_apm.config import Row
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.data.streams import Stream, schedule
from tta_apm.device import choose_device, describe
from tta_apm.errors import UserError, name_and_text, text_of
from tta_apm.method import Method
from tta_apm.registry import METHODS


class Built(NamedTuple):
    """A method on the device, and the guard that stood around its constructor."""

    method: Method
    guard: Guard


class Sweep:
    """The cells of a config that are yet to run.

    Every call into a method goes through a Guard, so that no row's numbers depend on the others.

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
        self.backbones: dict[str, Backbone] = {}
        self.checked: list[Built] = []  # of the first run, built already
        self.failed: list[str] = []
        self.commit = commit()
        self.versions = versions()

    def run(self) -> list[str]:
        """Run the cells; returns the names of those that failed.

        Raises:
            UserError: before anything runs, for a method or backbone that cannot be built.
        """
        runs = [list(run) for _, run in groupby(self.cells, lambda cell: (cell.row, cell.seed))]
        runs = [run for run in runs if any(cell.name in self.todo for cell in run)]
        self._check(runs)
        total = sum(len(stream) for run in runs for stream in self._streams(run))
        with Progress(total) as progress:
            for place, run in enumerate(runs):
                if place:
                    self._free()
                self._run(run, progress)
        return self.failed

    def _check(self, runs: Sequence[Sequence[Cell]]) -> None:
        """Build the method of each row: a bad setting is told now, not after an hour.

        The first is built last and kept for its run, as building may take minutes; the others are
        let go, as they would take memory from those that run.
        """
        firsts: dict[str, Sequence[Cell]] = {}
        for run in runs:
            firsts.setdefault(run[0].row.text, run)
        for run in reversed(firsts.values()):
            if self.checked:
                self._free()
            try:
                self.checked.append(self._build(run[0].row, run[0].seed))
            except MethodError:  # no setting is bad: the row fails by name in its turn
                pass

    def _run(self, run: Sequence[Cell], progress: Progress) -> None:
        """One row with one seed over its streams."""
        cells = {cell.domain: cell for cell in run}
        streams = self._streams(run)
        try:
            method, guard = (self.checked.pop() if self.checked
                             else self._build(run[0].row, run[0].seed))
        except (UserError, MethodError) as error:  # the one: memory ran short, say
            progress.start(cells[streams[0].domains[0]], len(streams[0].domains))
            self._lose(streams, cells, error, progress)
            return
        waiting = Counter(domain for stream in streams for domain in stream.domains)
        done: dict[Domain, Evaluation] = {}
        meeting = Run(method, guard, self.device, self._carries_on(run))
        for place, stream in enumerate(streams):
            progress.start(cells[stream.domains[0]], len(stream.domains))
            try:
                evaluations = meeting.meet(stream, progress.update)
                resolved = checked_resolved(guard.call(getattr, method, "resolved"))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a stranger's method may raise anything, exit as well
                error = self._with_backbone(error, guard)
                to_the_end = self._carries_on(run) or isinstance(error, Trespass)
                self._lose(streams[place:] if to_the_end else [stream], cells, error, progress)
                if to_the_end:
                    break
                continue
            for domain, evaluation in evaluations.items():
                done[domain] = (done[domain].followed_by(evaluation) if domain in done
                                else evaluation)
                waiting[domain] -= 1
                if not waiting[domain]:
                    self._finish(cells[domain], done.pop(domain), resolved, meeting.gflops,
                                 progress)

    def _free(self) -> None:
        """Let go of the method before; not of the last one, as it takes a quarter of a second."""
        self.checked.clear()
        gc.collect()  # hooks and the method they are of hold one another

    def _streams(self, run: Sequence[Cell]) -> list[Stream]:
        """The streams that a run must go through: all up to the last missing cell if state is
        carried over, else those with a missing cell."""
        every = schedule(self.cfg.SETTING, [cell.domain for cell in run])
        todo = {cell.domain for cell in run if cell.name in self.todo}
        needed = [place for place, domains in enumerate(every) if todo.intersection(domains)]
        if needed and self._carries_on(run):
            needed = list(range(needed[-1] + 1))
        return [Stream(self.dataset, every[place], num_images=self.cfg.NUM_IMAGES,
                       batch_size=self.cfg.BATCH_SIZE, seed=run[0].seed, order=self.cfg.ORDER,
                       concentration=self.cfg.DIRICHLET) for place in needed]

    def _carries_on(self, run: Sequence[Cell]) -> bool:
        return carries_on(self.cfg.SETTING, run[0].row.scope)

    def _finish(self, cell: Cell, evaluation: Evaluation, resolved: dict[str, Any],
                gflops: float | None, progress: Progress) -> None:
        if cell.name in self.todo:
            try:
                self._save(cell, evaluation, resolved, gflops)
            except UserError:  # the disk: it fails all cells
                raise
            except Exception as error:
                self._fail(cell, error, progress)
                return
        progress.finish(cell, evaluation)

    def _lose(self, streams: Sequence[Stream], cells: Mapping[Domain, Cell], error: BaseException,
              progress: Progress) -> None:
        """Of `streams`, the first of which is under way, nothing will come."""
        progress.skip(sum(map(len, streams)))
        for domain in dict.fromkeys(domain for stream in streams for domain in stream.domains):
            self._fail(cells[domain], error, progress)

    def _fail(self, cell: Cell, error: BaseException, progress: Progress) -> None:
        progress.fail(cell, _explain(error))
        # One that is there already was run through for its state only; and a domain that is visited
        # twice may fail twice.
        if cell.name in self.todo and cell.name not in self.failed:
            self.failed.append(cell.name)

    def _build(self, row: Row, seed: int) -> Built:
        """The method of a row, on the device.

        Raises:
            Trespass: if its constructor changed what is not its own.
            UserError: if it cannot be built, whatever it raises.
        """
        try:
            backbone = self._backbone(row.needs)
            keywords = dict(row.hyper_parameters)
            if "seed" in row.signature.defaults:
                keywords["seed"] = seed
            if "source" in row.signature.defaults:
                keywords["source"] = self.source
            make = METHODS.load(row.method)
            guard = Guard(seed, backbone)
            try:
                method = guard.call(lambda: make(
                    suited(backbone, row.signature.needs), **keywords).to(self.device))
                guard.check()
            except BaseException as error:
                raise self._with_backbone(error, guard)
            return Built(method, guard)
        except (UserError, MethodError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise UserError(f"method {row.text!r} cannot be built: {_explain(error)}") from error

    def _with_backbone(self, error: BaseException, guard: Guard) -> BaseException:
        """The error of a method; with what it did to the backbone, which is then built anew."""
        changes = guard.backbone_changes()
        if not changes:
            return error
        self.backbones = {kind: backbone for kind, backbone in self.backbones.items()
                          if backbone is not guard.backbone}
        if isinstance(error, (Trespass, KeyboardInterrupt)):
            return error
        trespass = Trespass(changes)
        trespass.__cause__ = error
        return trespass

    @cached_property
    def source(self) -> SourceImages | None:
        """The images that the backbones learnt from, read once for all methods that ask."""
        source = self.dataset.source()
        return None if source is None else SourceImages(source, self.device)

    def _backbone(self, kind: str) -> Backbone:
        measure.keep_only(kind, self.backbones, self.device)
        if kind not in self.backbones:
            section = self.cfg[kind.upper()]
            self.backbones[kind] = build(
                kind, section.MODEL, section.WEIGHTS, class_names=self.dataset.class_names,
                templates=self._templates(), device=self.device,
                outputs=self.dataset.outputs, section=section)
        return self.backbones[kind]

    def _template_set(self) -> str:
        chosen: str = self.cfg.TEMPLATES
        return self.dataset.template_set if chosen == "auto" else chosen

    def _templates(self) -> Sequence[str]:
        own = self.dataset.templates if self.cfg.TEMPLATES == "auto" else None
        return own or templates(self._template_set())

    def _save(self, cell: Cell, evaluation: Evaluation, resolved: dict[str, Any],
              gflops: float | None) -> None:
        row, backbone = cell.row, self.backbones[cell.row.needs]
        predictions = evaluation.predictions
        content = predictions.to_bytes()
        record = Record(
            row=row.text, method=row.method,
            hyper_parameters={**row.hyper_parameters, **resolved},
            scope=row.scope, survives=row.survives, backbone=backbone.name,
            weights=backbone.weights,
            templates=self._template_set() if find_kind(row.needs).has_prompts else "",
            resolution=backbone.image_size or 0, dataset=self.dataset.name,
            corruption=cell.domain.corruption, severity=cell.domain.severity,
            images_from=self.dataset.describe(cell.domain), num_images=len(predictions.index),
            images_hash=evaluation.images_hash, setting=self.cfg.SETTING, order=order_of(self.cfg),
            batch_size=self.cfg.BATCH_SIZE, seed=cell.seed,
            num_correct=int(predictions.correct().sum()), seconds=evaluation.seconds,
            peak_memory_mb=evaluation.peak_memory_mb, gflops_per_image=gflops,
            device=describe(self.device), fingerprint=cell.fingerprint, code=cell.identity["code"],
            commit=self.commit, predictions_hash=hash_bytes(content), versions=self.versions,
            preprocessing=backbone.preprocessing, identity=cell.identity)
        save_cell(cell.path(self.folder), record, content)


def checked_resolved(resolved: Any) -> dict[str, Any]:
    """What a method resolved, if a record can hold it. MethodError for anything else."""
    if not isinstance(resolved, dict):
        raise MethodError(f"has `resolved` of type {type(resolved).__name__} instead of a dict")
    for key, value in resolved.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise MethodError(f"has `resolved` {key!r} that no record holds: numbers must be "
                              "finite, and other values text, true, false, none or lists of these")
    return resolved


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return (value is None or isinstance(value, (bool, int, str))
            or isinstance(value, float) and math.isfinite(value))


def _explain(error: BaseException) -> str:
    """The error in one line, with the place that raised it unless it is a sentence of ours."""
    text = text_of(error)
    if isinstance(error, Trespass) and error.__cause__:
        return f"{text}; then it failed: {_explain(error.__cause__)}"
    if isinstance(error, (UserError, MethodError)):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{name_and_text(error)} ({Path(place.filename).name}:{place.lineno})"
