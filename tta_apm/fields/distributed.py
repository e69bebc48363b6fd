"""Team: the processes that train together, as torchrun starts them; usually one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tta_apm.device import choose_device


class Team(NamedTuple):
    """This process among all."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, module: nn.Module) -> nn.Module:
        """`module` with gradients that are the mean over the team."""
        if self.size == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are constants: they need not be sent at each step.
        return nn.parallel.DistributedDataParallel(module, device_ids=devices,
                                                   broadcast_buffers=False)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of detached `values` over the team."""
        values = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def gather(device: str) -> Iterator[Team]:
    """The team that torchrun's environment describes, this process alone without one.

    Args:
        device: see device.choose_device.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device)
    if size == 1:
        yield Team(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()
