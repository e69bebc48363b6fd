"""Student: the perception machine itself, written to be read, for one image.

Symbols: L = h·w columns (locations), d size of the trigger column, p of the positional code,
D of the teacher's feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = ("mean", "attention")


class Student(nn.Module):
    """A column network: one convolution, one MLP shared by all columns (Sections 3.2 to 3.5).

    Args:
        grid: columns along each side; L = grid².
        patch: side in pixels of the part of the image that a column sees.
        kernels: convolution kernels; the trigger column has d = kernels·grid² entries.
        code: size p of the positional code, a multiple of 4.
        hidden: widths of the MLP (Table 6).
        feature_dim: D.
        pooling: "mean" of the columns' features, or "attention" of a learned query over them.
    """

    code: Tensor

    def __init__(self, *, grid: int, patch: int, kernels: int, code: int, hidden: Sequence[int],
                 feature_dim: int, pooling: str) -> None:
        super().__init__()
        self.grid = grid
        self.patch = patch
        widths = [kernels * grid * grid + code, *hidden]
        self.conv = nn.Conv2d(3, kernels, patch, stride=patch)
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.projection = nn.Linear(widths[-1], feature_dim)
        self.pooling = AttentionPooling(grid, feature_dim) if pooling == "attention" else None
        self.register_buffer("code", positional_code(grid, code), persistent=False)

    def unfold(self, image: Tensor) -> Tensor:
        """The input [L, d+p] of every column of a normalised image [3,H,W]: T, then its place."""
        trigger = self.conv(image[None]).flatten()
        return torch.cat([trigger.expand(self.grid**2, -1), self.code.flatten(0, 1)], dim=1)

    def columns(self, inputs: Tensor) -> Tensor:
        """Features [n,D] of columns with inputs [n, d+p]; columns never see one another."""
        for layer in self.mlp:
            inputs = F.relu(layer(inputs))
        return self.projection(inputs)

    def forward(self, image: Tensor) -> Tensor:
        """The pooled feature f_avg [D] of a normalised image [3,H,W] over all columns."""
        features = self.columns(self.unfold(image))
        return features.mean(0) if self.pooling is None else self.pooling(features)


class AttentionPooling(nn.Module):
    """A learned query attends to the columns' features plus their places (authors' code)."""

    code: Tensor

    def __init__(self, grid: int, feature_dim: int, num_heads: int = 8) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(feature_dim, num_heads, batch_first=True)
        self.query = nn.Parameter(torch.empty(feature_dim))
        self.register_buffer("code", positional_code(grid, feature_dim).flatten(0, 1),
                             persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """[L,D] -> [D]."""
        placed = features + self.code
        return self.attention(self.query[None], placed, placed, need_weights=False)[0][0]


def positional_code(grid: int, size: int) -> Tensor:
    """The fixed 2-D sinusoid [grid, grid, size] (Section 3.4).

    The first half holds the column's index x, the second its row y, sine and cosine interleaved,
    base 10000, integer positions.
    """
    half = size // 2
    frequencies = torch.exp(torch.arange(0, half, 2, dtype=torch.float64)
                            * (-math.log(10000.0) / half))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [grid, half]
    of_x = line[None, :, :].expand(grid, grid, half)
    of_y = line[:, None, :].expand(grid, grid, half)
    return torch.cat([of_x, of_y], dim=-1).to(torch.get_default_dtype())


def draw(student: Student, seed: int, std: float = 0.01) -> Student:
    """Draw every parameter, biases too, from N(0, std²); the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return student
