"""Sample filters: the parts of rules that choose the images of a batch to update on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def max_entropy(num_classes: int) -> float:
    """ln K, the entropy in nats of a uniform prediction; thresholds are fractions of it."""
    return math.log(num_classes)


class MeanPrediction:
    """A moving average of predictions, used to find redundant ones (EATA, Eq. 4 and 5).

    Args:
        momentum: weight of the old average in an update.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self.momentum = momentum
        self.value: Tensor | None = None

    def similarity(self, probabilities: Tensor) -> Tensor:
        """|cosine| [B] between predictions [B,K] and the average; 0 before the first update."""
        if self.value is None:
            return probabilities.new_zeros(len(probabilities))
        return F.cosine_similarity(probabilities, self.value[None], dim=1).abs()

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        """Update the average with the mean of predictions [n,K]; with none it is unchanged."""
        if len(probabilities) == 0:
            return
        mean = probabilities.mean(0)
        self.value = mean if self.value is None else mean.lerp(self.value, self.momentum)

    def reset(self) -> None:
        """Forget the average."""
        self.value = None
