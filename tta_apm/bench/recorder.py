"""Recorder: write the records of a sweep's cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import find_kind
from tta_apm.bench.evaluate import Evaluation
from tta_apm.bench.plan import Cell, order_of
from tta_apm.bench.provenance import commit, versions
from tta_apm.bench.records import Record, hash_bytes, save_cell
from tta_apm.bench.run import Run
from tta_apm.data.dataset import DataSet
from tta_apm.device import describe


class Recorder:
    """Writes records to a results folder.

    Args:
        cfg: the config of the sweep.
        folder: the results folder.
        dataset: the data set of the config.
        device: where the methods run.
        template_set: the name of the prompt templates of a CLIP.
    """

    def __init__(self, cfg: CfgNode, folder: Path, dataset: DataSet, device: torch.device,
                 template_set: str) -> None:
        self.cfg = cfg
        self.folder = folder
        self.dataset = dataset
        self.device = describe(device)
        self.template_set = template_set
        self.commit = commit()
        self.versions = versions()

    def save(self, cell: Cell, evaluation: Evaluation, resolved: dict[str, Any], run: Run, *,
             crowded: bool) -> None:
        """Write the predictions and the record of a cell.

        Args:
            resolved: see Method.resolved.
            run: the run that made the evaluation.
            crowded: whether other processes used the same device or cores.

        Raises:
            ValueError, TypeError: if JSON cannot hold the record.
            UserError: if a file cannot be written.
        """
        row, backbone = cell.row, run.guard.backbone
        assert isinstance(backbone, Backbone)
        predictions = evaluation.predictions
        content = predictions.to_bytes()
        record = Record(
            row=row.text, method=row.method,
            hyper_parameters={**row.hyper_parameters, **resolved},
            scope=row.scope, survives=row.survives, backbone=backbone.name,
            weights=backbone.weights,
            templates=self.template_set if find_kind(row.needs).has_prompts else "",
            resolution=backbone.image_size or 0, dataset=self.dataset.name,
            corruption=cell.domain.corruption, severity=cell.domain.severity,
            images_from=self.dataset.describe(cell.domain), num_images=len(predictions.index),
            images_hash=evaluation.images_hash, setting=self.cfg.SETTING, order=order_of(self.cfg),
            batch_size=self.cfg.BATCH_SIZE, seed=cell.seed,
            num_correct=int(predictions.correct().sum()), seconds=evaluation.seconds,
            peak_memory_mb=evaluation.peak_memory_mb, gflops_per_image=run.gflops,
            device=self.device, fingerprint=cell.fingerprint, code=cell.identity["code"],
            commit=self.commit, predictions_hash=hash_bytes(content), versions=self.versions,
            preprocessing=backbone.preprocessing, identity=cell.identity,
            did=dict(evaluation.did), crowded=crowded)
        save_cell(cell.path(self.folder), record, content)
