"""Team: the processes that train together, as torchrun starts them; usually one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tta_apm.errors import UserError


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
        return nn.parallel.DistributedDataParallel(module, device_ids=devices)

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


def choose_device(device: str) -> torch.device:
    """The device that a config's `device` means; auto is CUDA if there is one, else the CPU.

    Under torchrun each process takes the GPU of its local rank.

    Raises:
        UserError: for a device that is not here.
    """
    name = device
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"DEVICE {device!r} is not here: use auto or cpu") from error
    return chosen


@contextmanager
def gather(device: str) -> Iterator[Team]:
    """The team that torchrun's environment describes, this process alone without one.

    Args:
        device: see choose_device.
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
