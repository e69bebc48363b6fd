"""Precision: in which type matrix products run, while weights and moments stay float32."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from tta_apm.errors import choose

AUTO = "auto"
FULL = "float32"


def resolve(precision: str, low: str, device: torch.device, method: str) -> str:
    """The precision that "auto" stands for: `low` on CUDA GPUs that compute in it, else float32.

    Args:
        precision: "auto", "float32" or `low`, as configured.
        low: the shorter type that the method is safe in: "bfloat16" or "float16".
        method: its name, for the error.

    Raises:
        UserError: for another precision.
    """
    known: Sequence[str] = (AUTO, FULL, low)
    choose(method, "precision", precision, known)
    if precision != AUTO:
        return precision
    return low if device.type == "cuda" and _computes_in(low, device) else FULL


def _computes_in(low: str, device: torch.device) -> bool:
    """Whether a CUDA GPU has it in hardware: before Ampere, as on V100 and T4, bfloat16 is
    emulated, and slower than float32."""
    return low != "bfloat16" or torch.cuda.get_device_capability(device) >= (8, 0)


def products(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context in which matrix products and convolutions run in `precision`, whatever the caller
    has set; gradients come out in the type of the weights. In float32 the weights' own type rules.
    """
    if device.type not in ("cpu", "cuda"):  # no autocast in every torch; nothing to switch off
        return nullcontext()
    # No cache: a caller's own autocast would keep short copies of weights from before an update.
    return torch.autocast(device.type, enabled=precision != FULL, cache_enabled=False,
                          dtype=torch.float16 if precision == "float16" else torch.bfloat16)
