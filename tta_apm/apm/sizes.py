"""Sizes of a student that no memory holds. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from tta_apm.errors import UserError

# Of a student; as float32, with gradients and moments, 160 GB.
MOST_WEIGHTS = 10**10


def check_size(what: str, widths: Sequence[int]) -> None:
    """Raise UserError for layers of more weights than any memory holds."""
    num_weights = sum(inputs * outputs for inputs, outputs in zip(widths, widths[1:]))
    if num_weights > MOST_WEIGHTS:
        raise UserError(f"{what} of widths {list(widths)} has {num_weights:.0e} weights, too many "
                        "for any memory")
