"""Attentions that mix the tokens of a ViT: self-attention and two linear ones.

Shapes: B images, N tokens, D channels, H heads, d = D / H.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Base of all attentions: the projections to queries, keys and values, and of the output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width) for _ in range(4))
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, inner: object = None) -> Tensor:
        """Mix tokens [B,N,D]; same shape. `inner` is unused: it is for layers with an inner loop.
        """
        query, key, value = (split_heads(part(tokens), self.heads)
                             for part in (self.query, self.key, self.value))
        return self.out(join_heads(self.attend(query, key, value)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The heads' outputs [B,H,N,d] for queries, keys and values [B,H,N,d]."""
        raise NotImplementedError


class SelfAttention(Attention):
    """Self-attention, with a softmax."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class LinearAttention(Attention):
    """Linear attention (Katharopoulos et al., ICML 2020), with the feature map elu(x) + 1."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = F.elu(query) + 1, F.elu(key) + 1
        return query @ (key.mT @ value) / (query @ key.sum(-2, keepdim=True).mT)


class IdentityAttention(Attention):
    """Linear attention with the identity as its feature map and the denominator N·d: what
    MTTT-Linear is equal to."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query @ (key.mT @ value / key[0, 0].numel())


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B,N,D] -> [B,H,N,d]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """[B,H,N,d] -> [B,N,D]."""
    return tokens.transpose(1, 2).flatten(2)
