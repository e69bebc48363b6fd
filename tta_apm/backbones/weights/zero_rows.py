"""Storing matrices without their zero rows, e.g. a small CLIP's embedding of 49,408 tokens, of
which its training texts have a few dozen.

The file holds the other rows as NAME, and one bool per row of the whole matrix as NAME.rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tta_apm.pickle_objects import Malformed

ROWS = ".rows"
MAX_BYTES = 64 << 20  # of a matrix with its zero rows


def drop_zero_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to store; a matrix of which most rows are zero loses these."""
    left: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        used = tensor.ne(0).any(1) if tensor.ndim == 2 else torch.ones(1, dtype=torch.bool)
        if 0 < 2 * int(used.sum()) < len(used):
            left |= {name: tensor[used].contiguous(), f"{name}{ROWS}": used}
        else:
            left[name] = tensor
    return left


def restore_zero_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of drop_zero_rows; tensors without NAME.rows are returned unchanged.

    Raises:
        Malformed: if NAME.rows does not name as many rows as NAME has, or for a matrix of more
            than MAX_BYTES.
    """
    whole = dict(tensors)
    for name, used in tensors.items():
        rows = tensors.get(name.removesuffix(ROWS))
        if not name.endswith(ROWS) or rows is None or used.dtype != torch.bool or used.ndim != 1:
            continue
        if rows.ndim != 2 or len(rows) != int(used.sum()):
            raise Malformed(f"its {name} does not name the rows of {name.removesuffix(ROWS)}")
        if len(used) * rows.shape[1] * rows.element_size() > MAX_BYTES:
            raise Malformed(f"its {name.removesuffix(ROWS)} would unpack to more than "
                            f"{MAX_BYTES >> 20} MiB")
        del whole[name]
        whole[name.removesuffix(ROWS)] = rows.new_zeros(len(used), rows.shape[1])
        whole[name.removesuffix(ROWS)][used] = rows
    return whole
