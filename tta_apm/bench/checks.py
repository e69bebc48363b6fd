"""Checks: what a method returns must have the shapes and types of its interface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta_apm.bench.isolation import MethodError
from tta_apm.bench.predictions import Predictions

# The details that a method may give of each image beside its logits: the optional columns.
DETAILS = tuple(field.name for field in fields(Predictions) if field.default is None)
# Columns of Predictions, by name.
Columns = dict[str, np.ndarray]


def checked_details(details: Mapping[str, Tensor], num_images: int) -> Columns:
    """A method's details as arrays [num_images]; MethodError if they are invalid."""
    if not isinstance(details, Mapping):
        raise MethodError(f"has details of type {type(details).__name__} instead of a dict")
    arrays = {}
    for name, value in details.items():
        if name not in DETAILS:
            raise MethodError(f"has details {name!r}, which are unknown; known: "
                              f"{', '.join(DETAILS)}")
        if not isinstance(value, Tensor) or value.shape != (num_images,):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise MethodError(f"has details {name!r} of {shape} instead of [{num_images}]")
        if not torch.isfinite(value).all():
            raise MethodError(f"has details {name!r} that are not finite")
        value = value.detach().cpu()
        # numpy has no bfloat16.
        arrays[name] = (value.float() if value.is_floating_point() else value).numpy()
    return arrays


def checked_resolved(resolved: Any) -> dict[str, Any]:
    """Return a method's `resolved`; MethodError if a record cannot hold it."""
    if not isinstance(resolved, dict):
        raise MethodError(f"has `resolved` of type {type(resolved).__name__} instead of a dict")
    for key, value in resolved.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise MethodError(f"has `resolved` {key!r} that a record cannot hold: numbers must be "
                              "finite, and other values text, true, false, none or lists of these")
    return resolved


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return (value is None or isinstance(value, (bool, int, str))
            or isinstance(value, float) and math.isfinite(value))


def check_logits(logits: Tensor, num_images: int, num_classes: int) -> None:
    """Raise MethodError unless `logits` is finite and [num_images, num_classes]."""
    if not isinstance(logits, Tensor) or logits.shape != (num_images, num_classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MethodError(f"returned {shape} instead of logits [{num_images}, {num_classes}]")
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(-1).sum())
        raise MethodError(f"returned logits that are not finite for {bad} of {num_images} images")
