"""Student: the perception machine itself, for one image and written for readability.

Symbols: L = h·w columns (locations); d, size of the trigger column; k, values of a local patch;
p, size of the positional code; D, size of the teacher's feature. A column's input is
[T | I_xy | p_xy] of d+k+p entries, where k = 0 unless `local_patch` is set. Leading batch
dimensions are kept: images [B,3,H,W] give inputs [B,L,d+k+p].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = ("mean", "attention")
# Mean and standard deviation of ImageNet, used to normalise the input (Table 7).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
HEADS = 8  # attention heads of the pooling
# Width of the RGB head's two hidden layers (authors' code).
RGB_WIDTH = 256


class Student(nn.Module):
    """A column network: one convolution, one MLP shared by all columns (Sections 3.2 to 3.5).

    Args:
        grid: columns along each side; L = grid².
        patch: side in pixels of the part of the image that a column sees.
        kernels: number of convolution kernels; the trigger column has d = kernels·grid² entries.
        code: size p of the positional code, a multiple of 4.
        hidden: widths of the MLP's hidden layers (Table 6).
        feature_dim: D.
        pooling: "mean" of the columns' features, or "attention" of a learned query over them.
        rgb: whether there is an RGB head.
        local_patch: whether a column also gets I_xy, the kernels' outputs at the patch of its
            location (k = kernels values; Table 5b).
        given_trigger_dim: size d of a trigger column that the caller passes in, e.g. a ViT's
            representation of the image (T_vit, Table 5b); 0: the convolution computes it.
    """

    code: Tensor

    def __init__(self, *, grid: int, patch: int, kernels: int, code: int, hidden: Sequence[int],
                 feature_dim: int, pooling: str, rgb: bool = False, local_patch: bool = False,
                 given_trigger_dim: int = 0) -> None:
        super().__init__()
        self.grid = grid
        self.patch = patch
        self.local_patch = local_patch
        self.given_trigger_dim = given_trigger_dim
        trigger_dim = given_trigger_dim or kernels * grid * grid
        widths = [trigger_dim + (kernels if local_patch else 0) + code, *hidden]
        self.conv = (nn.Conv2d(3, kernels, patch, stride=patch)
                     if local_patch or not given_trigger_dim else None)
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.projection = nn.Linear(widths[-1], feature_dim)
        self.pooling = AttentionPooling(grid, feature_dim) if pooling == "attention" else None
        self.rgb = RgbHead(widths[0], feature_dim) if rgb else None
        self.register_buffer("code", positional_code(grid, code), persistent=False)

    def trigger(self, image: Tensor) -> Tensor:
        """The trigger column T [d] of a normalised image [3,H,W]."""
        return self._patch_values(image).flatten(-2)

    def unfold(self, image: Tensor, trigger: Tensor | None = None) -> Tensor:
        """The input [L, d+k+p] of every column of a normalised image [3,H,W].

        Args:
            trigger: the trigger column [d], for a student with a `given_trigger_dim`.
        """
        trigger = self.trigger(image) if trigger is None else trigger
        return self.join(trigger, self._patch_values(image).mT if self.local_patch else None)

    def join(self, trigger: Tensor, local: Tensor | None = None) -> Tensor:
        """The input [L, d+k+p] of every column, from a trigger column [d] and I_xy [L,k]."""
        batch, num_columns = trigger.shape[:-1], self.grid**2
        parts = [trigger.unsqueeze(-2).expand(*batch, num_columns, -1),
                 self.code.flatten(0, 1).expand(*batch, -1, -1)]
        if local is not None:
            parts.insert(1, local)
        return torch.cat(parts, dim=-1)

    def _patch_values(self, image: Tensor) -> Tensor:
        """The output of each kernel at each patch, [kernels, L]."""
        assert self.conv is not None
        return self.conv(image).flatten(-2)

    def columns(self, inputs: Tensor) -> Tensor:
        """Features [n,D] of columns with inputs [n, d+k+p]; no column depends on another."""
        for layer in self.mlp:
            inputs = F.relu(layer(inputs))
        return self.projection(inputs)

    def colours(self, inputs: Tensor, features: Tensor) -> Tensor:
        """Colours [n,3], trained to lie in [0,1], of columns' inputs [n,d+k+p] and features [n,D].
        """
        assert self.rgb is not None
        return self.rgb(inputs, features)

    def forward(self, image: Tensor, trigger: Tensor | None = None) -> Tensor:
        """The feature f_avg [D] of a normalised image [3,H,W], pooled over all columns."""
        return self.pool(self.columns(self.unfold(image, trigger)))

    def pool(self, features: Tensor) -> Tensor:
        """Pool the features [L,D] of all columns to f_avg [D]."""
        return features.mean(-2) if self.pooling is None else self.pooling(features)


class RgbHead(nn.Module):
    """Decodes a column's feature and input to the colour at its location (Figure 4).

    The input is passed on past the MLP because features of neighbouring columns are alike. The
    first layer's width in the paper does not match its input, so the widths are those of the
    authors' code: (D+d+p) → 256 → 256 → 3. Their code ends in a ReLU, which is left out here:
    with random initial weights its output may be 0 everywhere and never receive a gradient.
    """

    def __init__(self, input_dim: int, feature_dim: int) -> None:
        super().__init__()
        widths = [feature_dim + input_dim, RGB_WIDTH, RGB_WIDTH, 3]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, inputs: Tensor, features: Tensor) -> Tensor:
        """Colours [n,3] of columns' inputs [n, d+k+p] and features [n,D]."""
        first, second, last = self.layers
        hidden = F.relu(first(torch.cat([features, inputs], dim=-1)))
        return last(F.relu(second(hidden)))


class AttentionPooling(nn.Module):
    """A learned query that attends to the columns' features plus positional codes (authors' code).
    """

    code: Tensor

    def __init__(self, grid: int, feature_dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(feature_dim, HEADS, batch_first=True)
        self.query = nn.Parameter(torch.empty(feature_dim))
        self.register_buffer("code", positional_code(grid, feature_dim).flatten(0, 1),
                             persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Pool features [L,D] to [D]."""
        keys = features + self.code
        query = self.query.expand(*features.shape[:-2], 1, -1)
        return self.attention(query, keys, keys, need_weights=False)[0].squeeze(-2)


def positional_code(grid: int, size: int) -> Tensor:
    """The fixed 2-D sinusoidal code [grid, grid, size] (Section 3.4).

    The first half encodes x, the second half y, at integer positions; sines and cosines
    alternate, and the base of the frequencies is 10000.
    """
    half = size // 2
    frequencies = torch.exp(torch.arange(0, half, 2, dtype=torch.float64)
                            * (-math.log(10000.0) / half))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [grid, half]
    of_x = line[None, :, :].expand(grid, grid, half)
    of_y = line[:, None, :].expand(grid, grid, half)
    return torch.cat([of_x, of_y], dim=-1).to(torch.get_default_dtype())


def sample_weights(student: Student, seed: int, std: float = 0.01) -> Student:
    """Sample every parameter, biases included, from N(0, std²) on the CPU, and return the student.

    The numbers are therefore the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return student
