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

    Attributes:
        used: the names of the generators that blocks have drawn from or seeded.
    """

    def __init__(self, seed: int) -> None:
        before = global_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)  # numpy takes no larger seeds
        torch.manual_seed(seed)
        self.state = global_state()
        self.used: set[str] = set()
        _set_state(before)

    def __enter__(self) -> None:
        self.outside = global_state()
        _set_state(self.state)

    def __exit__(self, *error: object) -> None:
        before, self.state = self.state, global_state()
        self.used |= changed_generators(before, self.state)
        _set_state(self.outside)


def global_state() -> tuple[Any, ...]:
    """The states of the global generators of Python, numpy and torch, also on GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def changed_generators(first: tuple[Any, ...], second: tuple[Any, ...]) -> set[str]:
    """The names of the generators whose states differ in two values of `global_state`."""
    (python, numpy, torch_, cuda), (python2, numpy2, torch2, cuda2) = first, second
    changed = {"Python": python != python2,
               "numpy": numpy[2] != numpy2[2] or bool((numpy[1] != numpy2[1]).any()),
               "torch": not torch.equal(torch_, torch2) or len(cuda) != len(cuda2)
               or not all(map(torch.equal, cuda, cuda2))}
    return {name for name in changed if changed[name]}


def _set_state(state: tuple[Any, ...]) -> None:
    of_python, of_numpy, of_torch, cuda = state
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
