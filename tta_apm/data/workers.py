"""The pool of threads that read, decode and corrupt images, one for the whole process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results of `function` for each item, in order, computed by the pool's threads.

    `function` must not call in_threads itself, which would wait forever.

    Raises:
        whatever the first failing call raises.
    """
    return list(_pool().map(function, items))


def num_workers() -> int:
    """The number of threads in the pool."""
    return _wanted or free_cores()


def set_num_workers(count: int) -> None:
    """Set the number of threads in the pool; 0 for the number of free cores."""
    global _wanted
    _wanted = count


def use_cores(count: int) -> None:
    """Limit this process to `count` cores, since other processes use the rest."""
    global _share
    _share = count


def free_cores() -> int:
    """The number of cores that this process may use."""
    if _share:
        return _share
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pool() -> ThreadPoolExecutor:
    """The pool; a new one after a fork, since a child process has no threads of its parent."""
    wanted = os.getpid(), num_workers()
    if wanted not in _pools:
        _pools.clear()
        _pools[wanted] = ThreadPoolExecutor(num_workers(), "images")
    return _pools[wanted]


_wanted = _share = 0
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
