"""Randomness: a separate state of the global random generators, for the calls of one method."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class Randomness:
    """A state of the global generators of Python, numpy and torch, which applies in `with` blocks.

    It starts at `seed` and continues from block to block. The state outside is restored after each
    block.
    """

    def __init__(self, seed: int) -> None:
        before = global_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy takes no larger seeds
        torch.manual_seed(seed)
        self.state = global_state()
        _set_state(before)

    def __enter__(self) -> None:
        self.outside = global_state()
        _set_state(self.state)

    def __exit__(self, *error: object) -> None:
        self.state = global_state()
        _set_state(self.outside)


def global_state() -> tuple[Any, ...]:
    """The states of the global generators of Python, numpy and torch, also on GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def same_state(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Whether two states of `global_state` are equal."""
    (python, numpy, torch_, cuda), (python2, numpy2, torch2, cuda2) = first, second
    return (python == python2 and numpy[2] == numpy2[2] and bool((numpy[1] == numpy2[1]).all())
            and torch.equal(torch_, torch2) and len(cuda) == len(cuda2)
            and all(map(torch.equal, cuda, cuda2)))


def _set_state(state: tuple[Any, ...]) -> None:
    of_python, of_numpy, of_torch, cuda = state
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
