"""ColumnLosses: the losses of one student on a batch of images (Algorithm 1), for pretraining.

Those of test-time training, one student per image, are in losses.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.apm.fields import decode
from tta_apm.apm.images import View
from tta_apm.apm.losses import colour_targets
from tta_apm.apm.recipe import Recipe
from tta_apm.apm.student import Student

LOSSES = ("cls", "grid", "rgb")


class Answers(NamedTuple):
    """What a teacher says of B images; None without a teacher."""

    features: Tensor | None  # of the images [B,D]
    grid: Tensor | None  # at the places of the columns [B,L,D]


class ColumnLosses(nn.Module):
    """Mean squared errors: pooled feature, columns against the teacher's grid, colours.

    All in one module, so that several processes can share its gradients.
    """

    def __init__(self, student: Student, recipe: Recipe) -> None:
        super().__init__()
        self.student = student
        self.view = View(recipe.image_size)
        self.weights = (recipe.cls_weight, recipe.grid_weight, recipe.rgb_weight)

    def forward(self, images: Tensor, answers: Answers) -> Tensor:
        """The losses [3] of LOSSES on images [B,3,H,W] in [0,1]; 0 for one with weight 0."""
        student = self.student
        features, colours = decode(student, student.trigger(self.view(images)))
        losses = [images.new_zeros(())] * 3
        with_cls, with_grid, with_rgb = self.weights
        if with_cls:
            assert answers.features is not None
            losses[0] = F.mse_loss(student.pool(features).to(images), answers.features)
        if with_grid:
            assert answers.grid is not None
            losses[1] = F.mse_loss(features.to(images), answers.grid)
        if with_rgb:
            assert colours is not None
            losses[2] = F.mse_loss(colours.to(images), colour_targets(images, student.patch))
        return torch.stack(losses)

    def total(self, losses: Tensor) -> Tensor:
        """The weighted sum that is minimised."""
        return (losses * losses.new_tensor(self.weights)).sum()
