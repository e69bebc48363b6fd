"""Matrices without their zero rows: of CLIP's 49,408 words a small CLIP has seen a few dozen.

Beside the rows that are left, NAME.rows says by one bool per row of NAME which they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tta_apm.pickled import Malformed

ROWS = ".rows"
MAX_BYTES = 64 << 20  # of a matrix with its zero rows


def leave_out(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, matrices that are mostly zero rows without these."""
    left: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        used = tensor.ne(0).any(1) if tensor.ndim == 2 else torch.ones(1, dtype=torch.bool)
        if 0 < 2 * int(used.sum()) < len(used):
            left |= {name: tensor[used].contiguous(), f"{name}{ROWS}": used}
        else:
            left[name] = tensor
    return left


def put_back(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `leave_out` was given, from what it gave; other tensors stay as they are.

    Raises:
        Malformed: if the rows that are there are not as many as those that are named, or for a
            matrix of more than MAX_BYTES.
    """
    whole = dict(tensors)
    for name, used in tensors.items():
        kept = tensors.get(name.removesuffix(ROWS))
        if not name.endswith(ROWS) or kept is None or used.dtype != torch.bool or used.ndim != 1:
            continue
        if kept.ndim != 2 or len(kept) != int(used.sum()):
            raise Malformed(f"its {name} does not name the rows of {name.removesuffix(ROWS)}")
        if len(used) * kept.shape[1] * kept.element_size() > MAX_BYTES:
            raise Malformed(f"its {name.removesuffix(ROWS)} would unpack to more than "
                            f"{MAX_BYTES >> 20} MiB")
        del whole[name]
        whole[name.removesuffix(ROWS)] = kept.new_zeros(len(used), kept.shape[1])
        whole[name.removesuffix(ROWS)][used] = kept
    return whole
