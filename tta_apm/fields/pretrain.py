"""Pretrain: train one student on a folder of images with a frozen teacher (Section 5).

It writes to OUTPUT_DIR: student.safetensors, the student; training.safetensors, from which the same
command resumes; and losses.csv.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader

from tta_apm.apm.losses import Targets
from tta_apm.atomic import atomic_write
from tta_apm.errors import UserError, explain
from tta_apm.fields import distributed
from tta_apm.fields.checkpoint import (
    History, build_student, load_training, save_student, save_training)
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.distributed import Workers
from tta_apm.fields.feature_cache import FeatureCache
from tta_apm.fields.losses import LOSSES, ColumnLosses
from tta_apm.fields.photos import Photos, find_images, read_image
from tta_apm.fields.teachers import Teacher, feature_dim, load_teacher
from tta_apm.lock import locked
from tta_apm.progress import bar
from tta_apm.toolbox.precision import computing_in, resolve

STUDENT_FILE, TRAINING_FILE, LOSSES_FILE = (
    "student.safetensors", "training.safetensors", "losses.csv")
SHOWN_EVERY = 10  # steps between updates of the losses in the progress bar


def pretrain(cfg: PretrainConfig) -> History | None:
    """Train the student of a config, or resume an interrupted training.

    Under torchrun each worker takes its share of every batch; the weights equal those of one
    process up to rounding.

    Returns:
        The losses; None on all workers but the main one.

    Raises:
        UserError: if the images, the teacher or the folder cannot be used, or the losses become
            infinite or NaN.
    """
    is_main = int(os.environ.get("RANK") or 0) == 0
    with (locked(Path(cfg.output_dir), json.dumps(vars(cfg))) if is_main else nullcontext(),
          distributed.init(cfg.device) as workers):
        if cfg.batch_size % workers.size:
            raise UserError(f"BATCH_SIZE {cfg.batch_size} cannot be shared by {workers.size} "
                            f"processes: give a multiple of {workers.size}")
        done = _Pretraining(cfg, workers).run()
        return done if workers.is_main else None


class _Pretraining:
    def __init__(self, cfg: PretrainConfig, workers: Workers) -> None:
        self.cfg = cfg
        self.workers = workers
        self.folder = Path(cfg.output_dir)
        self.files = find_images(cfg.images)
        self.teacher = load_teacher(cfg, workers.device) if cfg.needs_teacher else None
        self.student = build_student(cfg, feature_dim(cfg, self.teacher)).to(workers.device)
        self.optimizer = torch.optim.Adam(self.student.parameters(), cfg.lr)
        self.cache = self._fill_cache(self.teacher) if cfg.cache and self.teacher else None
        if self.cache:
            self.teacher = None  # its features of all images are cached

    def run(self) -> History:
        cfg, workers = self.cfg, self.workers
        if workers.is_main:
            with self._writing():  # raises now rather than at the first checkpoint
                self.folder.mkdir(parents=True, exist_ok=True)
        saved = self.folder / TRAINING_FILE
        done = History(0, torch.zeros(0, len(LOSSES)))
        if saved.is_file():
            done = load_training(saved, self.student, self.optimizer, cfg)
        objective = ColumnLosses(self.student, cfg).to(workers.device)
        wrapped = workers.wrap_ddp(objective)
        history = list(done.losses)
        precision = resolve(cfg.precision, "bfloat16", workers.device, "pretrain")
        shown = bar(cfg.steps, "step", start=done.step) if workers.is_main else None
        for step, (indices, images) in enumerate(self._batches(done.step), start=done.step + 1):
            images = images.to(workers.device, non_blocking=True)
            targets = self._targets(indices, images)
            with computing_in(precision, workers.device):
                losses = wrapped(images, targets)
            self.optimizer.zero_grad()
            objective.total(losses).backward()
            self.optimizer.step()
            history.append(workers.mean(losses))
            if shown:
                if step % SHOWN_EVERY == 0:
                    shown.set_postfix_str(", ".join(f"{name} {value:.4f}" for name, value in zip(
                        LOSSES, history[-1].tolist()) if value))
                shown.update()
            if step % cfg.save_every == 0 or step == cfg.steps:
                done = self._save(history)
        if shown:
            shown.close()
        return done

    def _batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of each batch from step `start` on: indices [b], images
        [b,3,H,W]."""
        cfg, workers = self.cfg, self.workers
        share = cfg.batch_size // workers.size
        positions = [list(range(first, first + share)) for first in range(
            start * cfg.batch_size + workers.rank * share,
            cfg.steps * cfg.batch_size, cfg.batch_size)]
        photos = Photos(self.files, cfg.image_size, cfg.crop, cfg.seed)
        try:
            yield from DataLoader(photos, batch_sampler=positions, num_workers=cfg.num_workers,
                                  pin_memory=workers.device.type == "cuda")
        except UserError as error:  # a reading process puts its traceback before the text
            raise UserError(str(error).rstrip().rpartition("UserError: ")[2]) from None

    def _targets(self, indices: Tensor, images: Tensor) -> Targets | None:
        if self.cache:
            features, grids = self.cache.get(indices.numpy())
            return Targets(features.to(images), grids.to(images))
        if self.teacher:
            return Targets(*self.teacher.targets(images, self.cfg.grid))
        return None

    def _fill_cache(self, teacher: Teacher) -> FeatureCache:
        """Fill the cache with the features of all images; each worker computes its share."""
        cfg, workers = self.cfg, self.workers

        def open_cache() -> FeatureCache:
            return FeatureCache(Path(cfg.cache), self.files,
                                f"{cfg.teacher} {teacher.weights}, {cfg.image_size} pixels",
                                cfg.grid**2, teacher.feature_dim)
        if workers.is_main:
            open_cache()
        workers.barrier()
        cache = open_cache()
        missing = cache.missing()[workers.rank::workers.size]
        batches = np.split(missing, range(cfg.batch_size, len(missing), cfg.batch_size))
        shown = bar(len(missing), "img", "teacher") if workers.is_main and len(missing) else None
        for indices in batches:
            if len(indices):
                images = torch.stack([read_image(self.files[index], cfg.image_size)
                                      for index in indices]).to(workers.device)
                cache.put(indices, *teacher.targets(images, cfg.grid))
            if shown:
                shown.update(len(indices))
        if shown:
            shown.close()
        workers.barrier()
        return cache

    def _save(self, history: list[Tensor]) -> History:
        losses = torch.stack([loss.cpu() for loss in history])
        wrong = (~losses.isfinite()).any(1).nonzero()
        if len(wrong):
            raise UserError(f"the loss is not finite from step {int(wrong[0]) + 1} on: lower LR or "
                            "set PRECISION float32; the checkpoint before that is kept")
        done = History(len(history), losses)
        if self.workers.is_main:
            with self._writing():
                save_student(self.folder / STUDENT_FILE, self.student, self.cfg)
                save_training(self.folder / TRAINING_FILE, self.student, self.optimizer, done,
                              self.cfg)
                text = io.BytesIO()
                np.savetxt(text, losses.numpy(), "%.8g", ",", header=",".join(LOSSES), comments="")
                atomic_write(self.folder / LOSSES_FILE, text.getvalue())
        return done

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write to OUTPUT_DIR {self.folder}: "
                            f"{explain(error)}") from error
