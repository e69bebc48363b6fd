"""Together: decide which rows run side by side (TOGETHER), by memory and by time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

# The share of the free memory that rows side by side may hold. The rest is for the peak of the row
# that runs: methods plan with three quarters of it (toolbox.episodes.chunk_size).
SHARE = 1 / 5
# A row is not slow if its time is within this factor of the fastest row's, including loading.
SIMILAR = 10.0
# Rows stay together if a domain takes at most so many seconds for all of them.
MAX_SECONDS = 600.0


class Room:
    """Decides how many rows fit side by side.

    Args:
        together: the config's TOGETHER: "auto" for as many as fit the free memory, or a number.
        free_mb: the free memory before any method is built, in MiB.
    """

    def __init__(self, together: str, free_mb: float) -> None:
        self.max_rows = None if together == "auto" else int(together)
        self.limit_mb = SHARE * free_mb

    def fits(self, held_mb: Sequence[float]) -> bool:
        """Whether rows that hold `held_mb` MiB each fit together."""
        if self.max_rows is not None:
            return len(held_mb) <= self.max_rows
        return len(held_mb) <= 1 or sum(held_mb) <= self.limit_mb


def slow_rows(fetching: float, seconds: Sequence[float], num_batches: float) -> set[int]:
    """The indices of the slow rows, which would delay the records of the others.

    A domain is recorded when all rows of a pass have finished it. If that takes longer than
    MAX_SECONDS, the slow rows make a pass of their own later. Loading the images again then costs
    them less than a tenth of their own time.

    Args:
        fetching: seconds to load a batch.
        seconds: those of each row for that batch.
        num_batches: the number of batches in a domain.
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
    """The free memory, in MiB, of a GPU, or of the machine within this process's limits; infinity
    if it is unknown."""
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
    """The free memory within the limits of the process's control groups, e.g. those of a Slurm job
    or a container, in MiB."""
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
