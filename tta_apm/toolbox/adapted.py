"""Adapted parameters: their optimiser and the source values that they return to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tta_apm.errors import choose

OPTIMIZERS = ("adam", "sgd")


class Adapted:
    """Parameters that a method updates, with their source values and their optimiser.

    Args:
        parameters: leaves that take gradients.
        lr: learning rate.
        optimizer: "adam" (betas .9, .999) or "sgd" (momentum .9).
        owner: the method, for an error.

    Raises:
        UserError: for another optimiser.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, lr: float, optimizer: str,
                 owner: str) -> None:
        choose(owner, "optimizer", optimizer, OPTIMIZERS)
        self.parameters = list(parameters)
        self.source = [parameter.detach().clone() for parameter in self.parameters]
        self.lr = lr
        self.optimizer_name = optimizer
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """The source values, no gradients and an empty optimiser."""
        for parameter, source in zip(self.parameters, self.source):
            parameter.copy_(source)
            parameter.grad = None
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(self.parameters, lr=self.lr) if self.optimizer_name == "adam" else
            torch.optim.SGD(self.parameters, lr=self.lr, momentum=0.9))

    def step(self, loss: Tensor) -> None:
        """One update against the gradient of `loss`."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def pull(self, share: float) -> None:
        """Move each value by `share` of its way back to the source's (weight ensembling)."""
        for parameter, source in zip(self.parameters, self.source):
            parameter.lerp_(source, share)

    @torch.no_grad()
    def restore_some(self, probability: float, generator: torch.Generator) -> None:
        """Give each single entry its source value with `probability` (stochastic restore)."""
        for parameter, source in zip(self.parameters, self.source):
            drawn = torch.rand(parameter.shape, generator=generator).to(parameter.device)
            parameter.copy_(torch.where(drawn < probability, source, parameter))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Let a mean teacher's parameters follow the student's; it keeps `momentum` of its own."""
    for own, other in zip(teacher.parameters(), student.parameters()):
        own.lerp_(other, 1 - momentum)
