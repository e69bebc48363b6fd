"""ColumnLosses: the losses of pretraining, for one student on a batch of images (Algorithm 1).

apm/losses.py has the losses of test-time training, with one student per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.apm.losses import Targets, colour_targets
from tta_apm.apm.student import Student
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.field import decode
from tta_apm.fields.photos import Preprocessing

LOSSES = ("cls", "grid", "rgb")


class ColumnLosses(nn.Module):
    """Mean squared errors: pooled feature, columns against the teacher's grid, colours.

    One module, so that DistributedDataParallel can wrap it.
    """

    weights: Tensor

    def __init__(self, student: Student, cfg: PretrainConfig) -> None:
        super().__init__()
        self.student = student
        self.preprocess = Preprocessing(cfg.image_size)
        weights = (cfg.cls_weight, cfg.grid_weight, cfg.rgb_weight)
        self.with_cls, self.with_grid, self.with_rgb = (weight > 0 for weight in weights)
        # A buffer: a list would be copied to the device at each step.
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, images: Tensor, targets: Targets | None) -> Tensor:
        """The losses [3], in the order of LOSSES, on images [B,3,H,W] in [0,1]; 0 for weight 0.

        Args:
            targets: the teacher's features of the images, None without a teacher.
        """
        student = self.student
        features, colours = decode(student, student.trigger(self.preprocess(images)))
        losses = [images.new_zeros(())] * 3
        if self.with_cls:
            assert targets is not None
            losses[0] = F.mse_loss(student.pool(features).to(images), targets.feature)
        if self.with_grid:
            assert targets is not None and targets.grid is not None
            losses[1] = F.mse_loss(features.to(images), targets.grid)
        if self.with_rgb:
            assert colours is not None
            losses[2] = F.mse_loss(colours.to(images), colour_targets(images, student.patch))
        return torch.stack(losses)

    def total(self, losses: Tensor) -> Tensor:
        """The weighted sum of the losses, which is minimised."""
        return (losses * self.weights).sum()
