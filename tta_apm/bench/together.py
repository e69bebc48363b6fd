"""Together: which rows run side by side (TOGETHER), by memory and by time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

# Of the free memory, what rows that run side by side may hold; the rest is for the peak of the one
# whose turn it is: methods plan with three quarters (toolbox.episodes.chunk_size).
SHARE = 1 / 5
# Rows that are within this factor of the quickest, its images included, are in no one's way.
SIMILAR = 10.0
# Seconds that rows may take together for a domain before the slow ones part from the quick ones.
MAX_SECONDS = 600.0


class Room:
    """How many rows there is room for.

    Args:
        together: the config's TOGETHER: "auto" for as many as the free memory holds, or a number.
        free_mb: the memory that is free before any method is there.
    """

    def __init__(self, together: str, free_mb: float) -> None:
        self.most = None if together == "auto" else int(together)
        self.limit_mb = SHARE * free_mb

    def holds(self, held_mb: Sequence[float]) -> bool:
        """Whether rows that hold so much each fit, at their number."""
        if self.most is not None:
            return len(held_mb) <= self.most
        return len(held_mb) <= 1 or sum(held_mb) <= self.limit_mb


def slow_ones(fetching: float, seconds: Sequence[float], num_batches: float) -> set[int]:
    """The indices of the rows that should not hold up the recording of the others.

    A domain is recorded when all rows of a pass are through it. Rows stay together if that takes up
    to ten minutes; beyond, the slow ones make another pass later, which costs them less than a
    tenth of their own time.

    Args:
        fetching: seconds that it took to get a batch.
        seconds: that each row took for it.
        num_batches: in a domain.
    """
    order = sorted(range(len(seconds)), key=seconds.__getitem__)
    total = fetching
    for number, index in enumerate(order):
        total += seconds[index]
        is_similar = seconds[index] <= SIMILAR * (fetching + seconds[order[0]])
        if number and total * num_batches > MAX_SECONDS and not is_similar:
            return set(order[number:])
    return set()


def free_memory_mb(device: torch.device) -> float:
    """Of the device, or of the machine as far as this process may use it; inf if it is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) / 2**20
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) / 2**10 for line in lines
                    if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float("inf")
    return min([free, *_left_to_the_group()])


def _left_to_the_group() -> list[float]:
    """What the limits of the process's control groups leave, e.g. a Slurm job's or a container's,
    in MiB."""
    found: list[float] = []
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        line = next(line for line in groups.splitlines()
                    if line.startswith("0::"))
    except (OSError, StopIteration):
        return found
    group = Path("/sys/fs/cgroup") / line[3:].strip("/")
    for folder in (group, *group.parents):
        try:
            limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
            if limit != "max":
                used = int((folder / "memory.current").read_text(encoding="utf-8"))
                found.append((int(limit) - used) / 2**20)
        except (OSError, ValueError):
            continue
    return found
