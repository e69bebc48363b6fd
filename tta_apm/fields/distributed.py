"""Distributed training: the processes that torchrun starts, or one process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tta_apm.device import choose_device


class Workers(NamedTuple):
    """This process among the workers of a training."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over all workers (DistributedDataParallel)."""
        if self.size == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are constants, so they need not be sent at each step.
        return nn.parallel.DistributedDataParallel(module, device_ids=devices,
                                                   broadcast_buffers=False)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of detached `values` over all workers."""
        values = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def barrier(self) -> None:
        """Wait until all workers have called it."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def init(device: str) -> Iterator[Workers]:
    """The workers that torchrun's environment describes, or this process alone.

    Args:
        device: see device.choose_device.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device)
    if size == 1:
        yield Workers(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()
