"""Entropies of predictions, the losses of e.g. TENT, TPT, MEMO and RMT."""

from __future__ import annotations

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy [...] in nats of the softmax of logits [...,K]."""
    log_probabilities = logits.log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy [...] in nats of the mean softmax over V views, from their logits [...,V,K]."""
    return entropy(logits.log_softmax(-1).logsumexp(-2))


def symmetric_cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Mean [...] of both directions of the cross-entropy between softmaxes of logits [...,K]."""
    return -(second.softmax(-1) * first.log_softmax(-1)
             + first.softmax(-1) * second.log_softmax(-1)).sum(-1) / 2
