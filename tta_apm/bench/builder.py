"""Builder: build the backbones and methods of a sweep."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import torch
from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build
from tta_apm.backbones.clip_templates import templates
from tta_apm.backbones.image_tower import suited
from tta_apm.backbones.tensor_cache import folder_of_method
from tta_apm.bench import measure
from tta_apm.bench.evaluate import CleanImages
from tta_apm.bench.isolation import Guard, IsolationError, MethodError
from tta_apm.bench.run import Run
from tta_apm.bench.series import Series
from tta_apm.data.dataset import DataSet, hash_text
from tta_apm.device import describe
from tta_apm.errors import UserError, name_and_text, text_of
from tta_apm.registry import METHODS


class RowError(UserError):
    """A method cannot be built, although its backbone could."""


class Builder:
    """Builds runs, and keeps the backbones that they share.

    Args:
        precomputed_folder: the folder for what methods compute before all images (e.g. RMT's
            warm-up), so that neither another process of the sweep nor a second build of a run
            computes it again. None stores nothing.

    Attributes:
        runs: the runs that were built and not yet released.
        held_mb: the memory that a row holds, by its text, for all rows built so far.
    """

    def __init__(self, cfg: CfgNode, dataset: DataSet, device: torch.device,
                 precomputed_folder: Path | None = None) -> None:
        self.cfg = cfg
        self.dataset = dataset
        self.device = device
        self.precomputed_folder = precomputed_folder
        self.backbones: dict[str, Backbone] = {}
        self.runs: dict[Series, Run] = {}
        self.held_mb: dict[str, float] = {}

    def run_of(self, series: Series) -> Run:
        """The run of a row and seed; it is built at the first call.

        Raises:
            IsolationError: if the method's constructor changed what is not its own.
            RowError: if the method's constructor raises any other error.
            UserError: if its backbone cannot be built.
        """
        if series not in self.runs:
            self.runs[series] = self._build(series)
            self.held_mb[series.row.text] = self.runs[series].held_mb
        return self.runs[series]

    def keep(self, wanted: Collection[Series]) -> None:
        """Release all runs but the wanted ones."""
        unwanted = self.runs.keys() - set(wanted)
        for series in unwanted:
            del self.runs[series]
        if unwanted:
            gc.collect()  # hooks and their methods form reference cycles

    def release(self, series: Series) -> None:
        """Release one run."""
        self.keep([other for other in self.runs if other is not series])

    def forget(self, backbone: torch.nn.Module | None) -> None:
        """Drop a backbone, e.g. one that a method has changed, and release the runs that use it."""
        self.backbones = {kind: other for kind, other in self.backbones.items()
                          if other is not backbone}
        self.keep([series for series, run in self.runs.items()
                   if run.guard.backbone is not backbone])

    def backbone(self, kind: str, beside: Collection[str] = ()) -> Backbone:
        """The backbone of a kind, on the device; all but those in `beside` leave the device."""
        measure.keep_only([kind, *beside], self.backbones, self.device)
        if kind not in self.backbones:
            section = self.cfg[kind.upper()]
            self.backbones[kind] = build(
                kind, section.MODEL, section.WEIGHTS, class_names=self.dataset.class_names,
                templates=self._templates(), device=self.device,
                outputs=self.dataset.outputs, section=section)
        return self.backbones[kind]

    @cached_property
    def source(self) -> CleanImages | None:
        """The labelled source images, or None; read once for all methods that need them."""
        source = self.dataset.source()
        return None if source is None else CleanImages(source, self.device)

    @property
    def template_set(self) -> str:
        """The name of the prompt templates of a CLIP."""
        chosen: str = self.cfg.TEMPLATES
        return self.dataset.template_set if chosen == "auto" else chosen

    def _templates(self) -> Sequence[str]:
        own = self.dataset.templates if self.cfg.TEMPLATES == "auto" else None
        return own or templates(self.template_set)

    def _build(self, series: Series) -> Run:
        row = series.row
        try:
            backbone = self.backbone(row.needs, {other.row.needs for other in self.runs})
            keywords = dict(row.hyper_parameters)
            if "seed" in row.signature.defaults:
                keywords["seed"] = series.seed
            if "source" in row.signature.defaults:
                keywords["source"] = self.source
            make = METHODS.load(row.method)
            guard = Guard(series.seed, backbone)
            before = measure.memory_in_use_mb(self.device)
            token = folder_of_method.set(self._folder_of(series))
            try:
                method = guard.call(lambda: make(
                    suited(backbone, row.signature.needs), **keywords).to(self.device))
                guard.check()
            except BaseException as error:
                if guard.backbone_changes():
                    self.forget(backbone)
                raise guard.with_backbone_changes(error)
            finally:
                folder_of_method.reset(token)
            held_mb = max(0.0, measure.memory_in_use_mb(self.device) - before)
            return Run(method, guard, self.device, series.carries_state, held_mb)
        except (MethodError, KeyboardInterrupt):
            raise
        except UserError as error:
            if row.needs not in self.backbones:
                raise
            raise RowError(str(error)) from error
        except BaseException as error:
            text = f"method {row.text!r} cannot be built: {explained(error)}"
            raise (RowError if row.needs in self.backbones else UserError)(text) from error

    def _folder_of(self, series: Series) -> Path | None:
        """The folder for the one-time setup of a row and seed. It depends on device, threads and
        torch's version, which may change the rounding."""
        if self.precomputed_folder is None:
            return None
        first = next(iter(series.cells.values()))
        return self.precomputed_folder / hash_text(first.fingerprint, str(series.seed),
                                                   describe(self.device), torch.__version__)


def explained(error: BaseException) -> str:
    """An error in one line; with the file and line that raised it if it is not our own error."""
    text = text_of(error)
    if isinstance(error, IsolationError) and error.__cause__:
        return f"{text}; then it failed: {explained(error.__cause__)}"
    if isinstance(error, (UserError, MethodError)):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{name_and_text(error)} ({Path(frame.filename).name}:{frame.lineno})"
