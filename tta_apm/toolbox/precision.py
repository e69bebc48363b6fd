"""Precision: the dtype of matrix products, while weights and moments stay float32."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from tta_apm.errors import choose

AUTO = "auto"
FULL = "float32"


def resolve(precision: str, low: str, device: torch.device, method: str) -> str:
    """Replace "auto" by `low` on CUDA GPUs that support it, by "float32" elsewhere.

    Args:
        precision: "auto", "float32" or `low`, as configured.
        low: the 16-bit dtype that suits the method: "bfloat16" or "float16".
        method: its name, for the error message.

    Returns:
        "float32" or `low`.

    Raises:
        UserError: for another precision.
    """
    known: Sequence[str] = (AUTO, FULL, low)
    choose(method, "precision", precision, known)
    if precision != AUTO:
        return precision
    return low if device.type == "cuda" and _has_hardware_for(low, device) else FULL


def _has_hardware_for(low: str, device: torch.device) -> bool:
    """Whether a CUDA GPU computes in `low` natively. Before Ampere (e.g. V100, T4) bfloat16 is
    emulated and slower than float32."""
    return low != "bfloat16" or torch.cuda.get_device_capability(device) >= (8, 0)


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context in which matrix products and convolutions run in `precision`.

    It overrides an autocast of the caller's. Gradients have the dtype of the weights. With
    "float32" nothing is cast, so products run in the dtype of the weights.
    """
    if device.type not in ("cpu", "cuda"):  # not every version of torch has autocast for these
        return nullcontext()
    # The cache would keep 16-bit copies of weights that an update has changed since.
    return torch.autocast(device.type, enabled=precision != FULL, cache_enabled=False,
                          dtype=torch.float16 if precision == "float16" else torch.bfloat16)
