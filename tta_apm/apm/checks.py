"""Checks of APM's hyper-parameters: UserError for what cannot work."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tta_apm.apm.sizes import check_size
from tta_apm.apm.student import HEADS
from tta_apm.errors import UserError


def check_numbers(hidden: Sequence[int], pooling: str, image_size: int, patch: int, kernels: int,
                  code: int, columns: int, steps: int, feature_dim: int) -> None:
    if image_size < 1 or patch < 1 or image_size % patch:
        raise UserError(f"apm: image_size {image_size} is no multiple of patch {patch}")
    if code < 4 or code % 4:
        raise UserError(f"apm: code {code} is no positive multiple of 4")
    if kernels < 1 or steps < 0 or not hidden or min(hidden) < 1:
        raise UserError(f"apm: kernels {kernels}, steps {steps} and hidden {list(hidden)} "
                        "must be positive (steps may be 0)")
    check_size("apm: a student", [kernels * (image_size // patch)**2 + code, *hidden, feature_dim])
    if not 0 <= columns <= (image_size // patch) ** 2:
        raise UserError(f"apm: columns {columns}: there are {(image_size // patch) ** 2} columns, "
                        "and 0 means all")
    if pooling == "attention" and feature_dim % HEADS:
        raise UserError(f"apm: attention pooling has {HEADS} heads, which do not divide the "
                        f"teacher's {feature_dim} features; use pooling mean")


def check_losses(weights: Sequence[float], pooling: str, trigger: str, augmentation: str) -> None:
    """Check the weights of L_cls, L_grid and L_rgb, and what goes with them."""
    cls, *of_columns = weights
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UserError(f"apm: cls_weight, grid_weight and rgb_weight {list(weights)} must be at "
                        "least 0, and one of them more")
    if not cls and not of_columns[0]:
        raise UserError("apm: L_rgb alone says nothing of the classes: give cls_weight or "
                        "grid_weight too")
    if not cls and pooling == "attention":
        raise UserError("apm: without L_cls nothing trains attention pooling: use pooling mean")
    if augmentation != "none" and (any(of_columns) or trigger != "conv"):
        raise UserError(f"apm: augmentation {augmentation} moves what the columns see: it goes "
                        "with trigger conv, grid_weight 0 and rgb_weight 0")
