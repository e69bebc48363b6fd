"""The threads that read, decode and corrupt images: one pool for the whole process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of each item, in order, by the threads of the pool.

    To be called from outside the pool: `function` must not call it again.

    Raises:
        whatever the first of the calls that fail raises.
    """
    return list(_pool().map(function, items))


def num_workers() -> int:
    """How many threads the pool has."""
    return _wanted or free_cores()


def set_num_workers(count: int) -> None:
    """Have `count` threads from now on; 0 takes as many as there are free cores."""
    global _wanted
    _wanted = count


def use_cores(count: int) -> None:
    """Have this process use no more than `count` cores, as others have the rest."""
    global _share
    _share = count


def free_cores() -> int:
    """The cores that this process may use."""
    if _share:
        return _share
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pool() -> ThreadPoolExecutor:
    """The pool; another one after a fork, which takes no threads along."""
    wanted = os.getpid(), num_workers()
    if wanted not in _pools:
        _pools.clear()
        _pools[wanted] = ThreadPoolExecutor(num_workers(), "images")
    return _pools[wanted]


_wanted = _share = 0
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
