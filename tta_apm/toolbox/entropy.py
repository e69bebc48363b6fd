"""Entropy of predictions: what TENT, TPT and MEMO minimise."""

from __future__ import annotations

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the softmax of logits [...,K] -> [...]."""
    log_probabilities = logits.log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the mean softmax of V views' logits [...,V,K] -> [...]."""
    return entropy(logits.log_softmax(-1).logsumexp(-2))
