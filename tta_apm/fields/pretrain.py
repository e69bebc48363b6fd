"""Pretraining: one student over a folder of images, with a frozen teacher (Section 5, Algorithm 1).

What it leaves in OUTPUT_DIR: student.safetensors, the student; training.safetensors, from which
the same command goes on; and losses.csv.
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
from tta_apm.fields.checkpoint import (
    Progress, build_student, load_training, save_student, save_training)
from tta_apm.fields.distributed import Team, gather
from tta_apm.fields.feature_cache import FeatureCache
from tta_apm.fields.losses import LOSSES, ColumnLosses
from tta_apm.fields.photos import Photos, find_images, read_image
from tta_apm.fields.recipe import Recipe
from tta_apm.fields.teachers import Teacher, feature_dim, load_teacher
from tta_apm.lock import locked
from tta_apm.progress import bar
from tta_apm.toolbox.precision import products, resolve

STUDENT_FILE, TRAINING_FILE, LOSSES_FILE = (
    "student.safetensors", "training.safetensors", "losses.csv")
SHOWN_EVERY = 10  # steps, of the losses in the progress bar


def pretrain(recipe: Recipe) -> Progress | None:
    """Train the student of `recipe`, or go on where an interrupted training stopped.

    Under torchrun every process takes its share of each batch; the weights are those of one process
    up to rounding, and only the process that leads gets the progress, others None.

    Raises:
        UserError: for images, a teacher or a folder that cannot be used, and for losses that are
            not finite any more.
    """
    leads = int(os.environ.get("RANK") or 0) == 0
    with (locked(Path(recipe.output_dir), json.dumps(vars(recipe))) if leads else nullcontext(),
          gather(recipe.device) as team):
        if recipe.batch_size % team.size:
            raise UserError(f"BATCH_SIZE {recipe.batch_size} cannot be shared by {team.size} "
                            "processes: take a multiple")
        done = _Pretraining(recipe, team).run()
        return done if team.leads else None


class _Pretraining:
    def __init__(self, recipe: Recipe, team: Team) -> None:
        self.recipe = recipe
        self.team = team
        self.folder = Path(recipe.output_dir)
        self.files = find_images(recipe.images)
        self.teacher = load_teacher(recipe, team.device) if recipe.needs_teacher else None
        self.student = build_student(recipe, feature_dim(recipe, self.teacher)).to(team.device)
        self.optimizer = torch.optim.Adam(self.student.parameters(), recipe.lr)
        self.cache = self._fill_cache(self.teacher) if recipe.cache and self.teacher else None
        if self.cache:
            self.teacher = None  # it has said all it has to say

    def run(self) -> Progress:
        recipe, team = self.recipe, self.team
        if team.leads:
            with self._writing():  # found out now, not at the first checkpoint
                self.folder.mkdir(parents=True, exist_ok=True)
        saved = self.folder / TRAINING_FILE
        done = Progress(0, torch.zeros(0, len(LOSSES)))
        if saved.is_file():
            done = load_training(saved, self.student, self.optimizer, recipe)
        machine = ColumnLosses(self.student, recipe).to(team.device)
        shared = team.share(machine)
        history = list(done.losses)
        precision = resolve(recipe.precision, "bfloat16", team.device, "pretrain")
        shown = bar(recipe.steps, "step", start=done.step) if team.leads else None
        for step, (indices, images) in enumerate(self._batches(done.step), start=done.step + 1):
            images = images.to(team.device, non_blocking=True)
            targets = self._targets(indices, images)
            with products(precision, team.device):
                losses = shared(images, targets)
            self.optimizer.zero_grad()
            machine.total(losses).backward()
            self.optimizer.step()
            history.append(team.mean(losses))
            if shown:
                if step % SHOWN_EVERY == 0:
                    shown.set_postfix_str(", ".join(f"{name} {value:.4f}" for name, value in zip(
                        LOSSES, history[-1].tolist()) if value))
                shown.update()
            if step % recipe.save_every == 0 or step == recipe.steps:
                done = self._save(history)
        if shown:
            shown.close()
        return done

    def _batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each batch from step `start` on: indices [b], images
        [b,3,H,W]."""
        recipe, team = self.recipe, self.team
        share = recipe.batch_size // team.size
        places = [list(range(first, first + share)) for first in range(
            start * recipe.batch_size + team.rank * share,
            recipe.steps * recipe.batch_size, recipe.batch_size)]
        photos = Photos(self.files, recipe.image_size, recipe.crop, recipe.seed)
        try:
            yield from DataLoader(photos, batch_sampler=places, num_workers=recipe.num_workers,
                                  pin_memory=team.device.type == "cuda")
        except UserError as error:  # from a worker it comes with that one's traceback before it
            raise UserError(str(error).rstrip().rpartition("UserError: ")[2]) from None

    def _targets(self, indices: Tensor, images: Tensor) -> Targets | None:
        if self.cache:
            features, grids = self.cache.get(indices.numpy())
            return Targets(features.to(images), grids.to(images))
        if self.teacher:
            return Targets(*self.teacher.targets(images, self.recipe.grid))
        return None

    def _fill_cache(self, teacher: Teacher) -> FeatureCache:
        """The cache with the features of all images; each process asks for its share."""
        recipe, team = self.recipe, self.team

        def open_cache() -> FeatureCache:
            return FeatureCache(Path(recipe.cache), self.files,
                                f"{recipe.teacher} {teacher.weights}, {recipe.image_size} pixels",
                                recipe.grid**2, teacher.feature_dim)
        if team.leads:
            open_cache()
        team.wait()
        cache = open_cache()
        missing = cache.missing()[team.rank::team.size]
        batches = np.split(missing, range(recipe.batch_size, len(missing), recipe.batch_size))
        shown = bar(len(missing), "img", "teacher") if team.leads and len(missing) else None
        for indices in batches:
            if len(indices):
                images = torch.stack([read_image(self.files[index], recipe.image_size)
                                      for index in indices]).to(team.device)
                cache.put(indices, *teacher.targets(images, recipe.grid))
            if shown:
                shown.update(len(indices))
        if shown:
            shown.close()
        team.wait()
        return cache

    def _save(self, history: list[Tensor]) -> Progress:
        losses = torch.stack([loss.cpu() for loss in history])
        wrong = (~losses.isfinite()).any(1).nonzero()
        if len(wrong):
            raise UserError(f"the loss is not finite from step {int(wrong[0]) + 1} on: lower LR or "
                            "set PRECISION float32; the checkpoint before that is kept")
        done = Progress(len(history), losses)
        if self.team.leads:
            with self._writing():
                save_student(self.folder / STUDENT_FILE, self.student, self.recipe)
                save_training(self.folder / TRAINING_FILE, self.student, self.optimizer, done,
                              self.recipe)
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
