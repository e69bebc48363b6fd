"""Filters of samples: which images of a batch are worth an update."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def largest_entropy(num_classes: int) -> float:
    """ln K, the entropy in nats of a uniform prediction, which thresholds are shares of."""
    return math.log(num_classes)


class MeanPrediction:
    """A moving average of predictions, to tell those that bring something new (EATA, Eq. 4, 5).

    Args:
        momentum: what the average keeps of itself at an update.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self.momentum = momentum
        self.value: Tensor | None = None

    def similarity(self, probabilities: Tensor) -> Tensor:
        """|cosine| [B] of predictions [B,K] and the average; 0 while there is none."""
        if self.value is None:
            return probabilities.new_zeros(len(probabilities))
        return F.cosine_similarity(probabilities, self.value[None], dim=1).abs()

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        """Take in the mean of predictions [n,K]; of none, nothing."""
        if len(probabilities) == 0:
            return
        mean = probabilities.mean(0)
        self.value = mean if self.value is None else mean.lerp(self.value, self.momentum)

    def reset(self) -> None:
        self.value = None
