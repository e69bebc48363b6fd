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
        parameters: leaves with `requires_grad`.
        lr: learning rate.
        optimizer: "adam" (betas 0.9, 0.999) or "sgd" (momentum 0.9).
        owner: name of the method, for error messages.
        weight_decay, nesterov: of "sgd".

    Raises:
        UserError: for an unknown optimizer.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, lr: float, optimizer: str,
                 owner: str, weight_decay: float = 0.0, nesterov: bool = False) -> None:
        choose(owner, "optimizer", optimizer, OPTIMIZERS)
        self.parameters = list(parameters)
        self.source = [parameter.detach().clone() for parameter in self.parameters]
        self.lr = lr
        self.optimizer_name = optimizer
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Return to the source values, no gradients and a new optimiser."""
        for parameter, source in zip(self.parameters, self.source):
            parameter.copy_(source)
            parameter.grad = None
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(self.parameters, lr=self.lr) if self.optimizer_name == "adam" else
            torch.optim.SGD(self.parameters, lr=self.lr, momentum=0.9,
                            weight_decay=self.weight_decay, nesterov=self.nesterov))

    def step(self, loss: Tensor) -> None:
        """Make one update that reduces `loss`, a scalar."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def ensemble_with_source(self, share: float) -> None:
        """Interpolate every value with its source value, whose weight is `share` (ROID)."""
        for parameter, source in zip(self.parameters, self.source):
            parameter.lerp_(source, share)

    @torch.no_grad()
    def stochastic_restore(self, probability: float, generator: torch.Generator) -> None:
        """Reset each entry to its source value with `probability` (CoTTA, Section 3.4).

        Args:
            generator: on the CPU, so that the same entries are reset on every device.
        """
        for parameter, source in zip(self.parameters, self.source):
            uniform = torch.rand(parameter.shape, generator=generator).to(parameter.device)
            parameter.copy_(torch.where(uniform < probability, source, parameter))


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Update a mean teacher: teacher = momentum · teacher + (1 - momentum) · student."""
    for own, other in zip(teacher.parameters(), student.parameters()):
        own.lerp_(other, 1 - momentum)
