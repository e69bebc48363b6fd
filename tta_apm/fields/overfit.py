"""Overfit: test-time training on one image, with snapshots (Section 3.6, Figure 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tta_apm.apm.losses import Targets
from tta_apm.apm.student import sample_weights
from tta_apm.fields.checkpoint import build_student
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.field import Field, error_map, field_of
from tta_apm.fields.losses import ColumnLosses
from tta_apm.fields.teachers import Teacher, feature_dim


class Snapshot(NamedTuple):
    """The student after `step` updates."""

    step: int
    loss: float  # the weighted sum, before the next update
    field: Field
    error: Tensor | None  # of each column against the teacher's grid, [L]


def overfit(cfg: PretrainConfig, teacher: Teacher | None, image: Tensor, at_steps: Collection[int]
            ) -> Iterator[Snapshot]:
    """Fit a new student, with weights from N(0, 0.01²), to one image [3,H,W] in [0,1] with Adam.

    Yields a Snapshot after each number of updates in `at_steps`, in ascending order. The field of a
    snapshot shares the student's weights, so it is valid only until the next one is taken.
    """
    images = image[None]
    targets = None
    if teacher is not None:
        targets = Targets(*teacher.targets(images, cfg.grid))
    student = build_student(cfg, feature_dim(cfg, teacher))
    student = sample_weights(student, cfg.seed).to(images)
    objective = ColumnLosses(student, cfg).to(images)
    optimizer = torch.optim.Adam(student.parameters(), cfg.lr)
    for step in range(max(at_steps) + 1):
        loss = objective.total(objective(images, targets))
        if step in at_steps:
            field = field_of(student, objective.preprocess(images)[0])
            error = None
            if targets is not None and targets.grid is not None:
                error = error_map(field.features(), targets.grid[0])
            yield Snapshot(step, loss.item(), field, error)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
