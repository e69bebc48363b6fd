"""Losses of test-time training, one per image, and their targets (Table 5b).

Symbols as in student.py: B images, L columns, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.fast import StudentOutputs


class Targets(NamedTuple):
    """The targets of B students; None for a target that no loss uses."""

    feature: Tensor  # the teacher's feature of the image [B,D]
    grid: Tensor | None = None  # the teacher's features at the columns' locations [B,L,D]
    colours: Tensor | None = None  # the images' colours at the columns' locations [B,L,3]


@dataclass(frozen=True)
class Losses:
    """The weighted sum of three mean squared errors.

    Args:
        cls: weight of L_cls, the pooled feature against the teacher's (Algorithm 2).
        grid: weight of L_grid, each column's feature against the teacher's at its location.
        rgb: weight of L_rgb, each column's colour against the mean of its patch.
    """

    cls: float
    grid: float
    rgb: float

    @property
    def per_column(self) -> bool:
        return self.grid > 0 or self.rgb > 0

    def __call__(self, outputs: StudentOutputs, targets: Targets) -> Tensor:
        """The loss of each image, [B]."""
        loss = self.cls * (outputs.pooled - targets.feature).square().mean(-1)
        if outputs.features is not None and targets.grid is not None:
            loss = loss + self.grid * (outputs.features - targets.grid).square().mean((1, 2))
        if outputs.colours is not None and targets.colours is not None:
            loss = loss + self.rgb * (outputs.colours - targets.colours).square().mean((1, 2))
        return loss


def grid_targets(grid: Tensor, side: int) -> Tensor:
    """The teacher's features [B,side²,D] at the locations of side² columns, row by row.

    Args:
        grid: the teacher's features [B,h,w,D]; resampled (bilinear, antialiased) unless
            h = w = side.
        side: columns along each side.
    """
    channels_first = grid.permute(0, 3, 1, 2)
    if grid.shape[1:3] != (side, side):
        channels_first = F.interpolate(channels_first, size=(side, side), mode="bilinear",
                                       antialias=True)
    return channels_first.flatten(2).transpose(1, 2)


def colour_targets(images: Tensor, patch: int) -> Tensor:
    """The mean colour [B,L,3] of each patch of images [B,3,H,W] in [0,1]."""
    return F.avg_pool2d(images, patch).flatten(2).transpose(1, 2)
