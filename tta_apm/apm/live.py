"""Products of ReLU layers without the units that do not need them, for CPUs.

Test-time training makes an image's columns alike: after ten steps of the `slim` student on a
photograph 30 to 52 % of a layer's units are 0 in every column, and 47 to 50 % are 0 in none. The
first kind needs no product, in either direction. The second is linear, and where its input is the
sum of a row's and of a column's part, as the first layer's is, one product for each row and each
column will do. Nothing is approximated. Which units these are differs from image to image, so the
images of a stack go one after the other; a GPU, which wants them in one program, takes the plain
products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Multiply-adds of a layer for one image, below which looking for such units costs more than they.
WORTH_IT = 2**25


class ReluLinear(Function):
    """relu(z) @ weight + bias for z [B,L,in], weight [B,in,out] and bias [B,out]: [B,L,out]."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.live = [_where(~(each.amax(0) <= 0)) for each in z]
        ctx.hidden = [each.index_select(1, live).relu_() for each, live in zip(z, ctx.live)]
        ctx.save_for_backward(weight)
        return torch.stack([torch.addmm(b, hidden, w[live]) for b, hidden, w, live in zip(
            bias, ctx.hidden, weight, ctx.live)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, = ctx.saved_tensors
        of_z = gradient.new_zeros(*gradient.shape[:2], weight.shape[1])
        of_weight = torch.zeros_like(weight)
        for b, (live, hidden) in enumerate(zip(ctx.live, ctx.hidden)):
            seen, delta = _seen(gradient[b])
            of_weight[b, live[:, None], seen] = hidden.T @ delta
            of_z[b, :, live] = (delta @ weight[b, live[:, None], seen].T).mul_(hidden > 0)
        return of_z, of_weight, gradient.sum(1)


class SumReluLinear(Function):
    """relu(rows + columns) @ weight + bias, of every pair of a row and a column.

    rows [B,h,in], columns [B,w,in], weight [B,in,out] and bias [B,out] give [B,h·w,out].
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Rounding is monotone: these are the least and the greatest of the sums, exactly.
        least, greatest = rows.amin(1) + columns.amin(1), rows.amax(1) + columns.amax(1)
        ctx.mixed = [_where(~(high <= 0) & ~(low > 0)) for low, high in zip(least, greatest)]
        ctx.always = [_where(low > 0) for low in least]
        ctx.hidden, ctx.parts = [], []
        outputs = []
        for b, (mixed, always) in enumerate(zip(ctx.mixed, ctx.always)):
            hidden = (rows[b, :, None, mixed] + columns[b, :, mixed]).relu_().flatten(0, 1)
            parts = torch.cat([rows[b], columns[b]])[:, always]
            ctx.hidden.append(hidden)
            ctx.parts.append(parts)
            of_rows, of_columns = (parts @ weight[b, always]).split(
                [rows.shape[1], columns.shape[1]])
            linear = (of_rows[:, None] + (of_columns + bias[b])).flatten(0, 1)
            outputs.append(torch.addmm(linear, hidden, weight[b, mixed]))
        ctx.save_for_backward(rows, columns, weight)
        return torch.stack(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, columns, weight = ctx.saved_tensors
        grid = (rows.shape[1], columns.shape[1], -1)
        of_rows, of_columns, of_weight = map(torch.zeros_like, (rows, columns, weight))
        for b, (mixed, always) in enumerate(zip(ctx.mixed, ctx.always)):
            hidden, parts = ctx.hidden[b], ctx.parts[b]
            seen, delta = _seen(gradient[b])
            summed = torch.cat([delta.view(grid).sum(1), delta.view(grid).sum(0)])
            used = torch.cat([mixed, always])
            of_weight[b, used[:, None], seen] = torch.cat([hidden.T @ delta, parts.T @ summed])
            mixed_weight, always_weight = weight[b, used[:, None], seen].split(
                [len(mixed), len(always)])
            of_hidden = (delta @ mixed_weight.T).mul_(hidden > 0).view(grid)
            of_rows[b, :, mixed] = of_hidden.sum(1)
            of_columns[b, :, mixed] = of_hidden.sum(0)
            of_rows[b, :, always], of_columns[b, :, always] = (summed @ always_weight.T).split(
                [rows.shape[1], columns.shape[1]])
        return of_rows, of_columns, of_weight, gradient.sum(1)


def _where(mask: Tensor) -> Tensor:
    """The places [n] at which a mask is true."""
    return mask.nonzero()[:, 0]


def _seen(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the outputs [n] of which the loss takes note, and their gradient [L,n]."""
    seen = _where(gradient.any(0))
    return seen, gradient.index_select(1, seen)
