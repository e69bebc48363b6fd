"""A sparse MLP with pooling, for CPUs: an exact evaluation that skips products without effect.

Test-time training makes an image's columns alike. After a few steps many of a layer's units are 0
in every column ("silent"), most others are positive in every column ("linear"), and few change
sign between columns ("mixed"); there are fewer mixed units in higher layers. Nothing is
approximated:
- Silent units need no product, forward or backward.
- The first layer is a sum of one part per y and one part per x of the grid. The product of its
  linear units with the second layer is such a sum too, so it takes one product per y and one per x
  instead of one per column.
- The gradient that the pooling sends to L columns of n units has a low rank: [L,q] @ [q,n] with q
  the number of queries. A linear unit passes it on unchanged; a mixed unit adds one to q. The
  gradient stays factorised as long as q is below L.
The kinds of units differ between images, so the images of a stack are processed one by one. On a
GPU, where one program for all images is faster, fast.py uses dense products instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Multiply-adds per image in the layers after the first. Below this number, finding the silent and
# linear units takes longer than skipping them saves.
MIN_MULTIPLY_ADDS = 2**25
# Up to this rank, a product over all units of a layer takes less time than picking the linear ones.
MAX_RANK = 64


class Factored(NamedTuple):
    """A matrix of n units in L columns: left [L,q] @ right [n,q]ᵀ, or left [L,n] alone."""

    left: Tensor
    right: Tensor | None

    def dense(self) -> Tensor:
        return self.left if self.right is None else self.left @ self.right.T

    def select(self, units: Tensor) -> Factored:
        """The matrix of the units with these indices."""
        if self.right is None:
            return Factored(self.left.index_select(1, units), None)
        return Factored(self.left, self.right.index_select(0, units))


class Layer(NamedTuple):
    """A layer's units that are not silent for an image, the linear ones first."""

    active: Tensor  # their indices in the layer [n]
    linear: Factored  # the activations of the linear units in each column
    mixed: Tensor  # those of the mixed units [L,m]
    rows: Tensor | None  # the active units' rows of the next layer's weight [n,out]

    @property
    def num_linear(self) -> int:
        return len(self.active) - self.mixed.shape[1]

    def sums(self, left: Tensor) -> Tensor:
        """The activations' products with `left` [L,q], summed over the columns: [n,q]."""
        found = left.new_empty(len(self.active), left.shape[1])
        linear, mixed = found.tensor_split([self.num_linear])
        if self.linear.right is None:
            torch.mm(self.linear.left.T, left, out=linear)
        else:
            torch.mm(self.linear.right, self.linear.left.T @ left, out=linear)
        torch.mm(self.mixed.T, left, out=mixed)
        return found


class SparsePooledMlp(Function):
    """An MLP's last activations, pooled over the columns of each of B images.

    apply(wants_columns, inputs, first, queries, offsets, weight, bias, weight, bias, ...)

    Args:
        wants_columns: whether to return the columns' activations too.
        inputs, first: [B,L,e] and [B,e,H]; the first layer is inputs @ first, bias included.
        queries, offsets: [B,h,n] and [B,h,L]; the attention over the columns is
            softmax(queries @ columnsᵀ + offsets). None and None: the mean, as if h were 1.
        weight, bias: [B,in,out] and [B,out] of each further layer.

    Returns:
        The pooled activations [B,h,n], the attention [B,h,L] (None for the mean) and the columns'
        activations [B,L,n] (None unless wanted).
    """

    @staticmethod
    def forward(ctx: Any, wants_columns: bool, inputs: Tensor, first: Tensor,
                queries: Tensor | None, offsets: Tensor | None, *layers: Tensor
                ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.layers = []  # of each image
        pooled, weights, columns = [], [], []
        for b in range(len(first)):
            of_image, last = forward_layers(inputs[b], first[b], [value[b] for value in layers])
            if queries is None or offsets is None:
                attention = last.new_full((1, len(last)), 1 / len(last))
            else:
                attention = torch.addmm(offsets[b], queries[b], last.T).softmax(-1)
            ctx.layers.append(of_image)
            pooled.append(attention @ last)
            weights.append(attention)
            columns.append(last)
        attention, last = torch.stack(weights), torch.stack(columns)
        ctx.save_for_backward(attention, last, queries, first, *layers[::2])
        return (torch.stack(pooled), None if queries is None else attention,
                last if wants_columns else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor, grad_attention: Tensor | None,
                 grad_columns: Tensor | None) -> tuple[Tensor | None, ...]:
        attention, columns, queries, *weights = ctx.saved_tensors
        grad_weights = list(map(torch.empty_like, weights))
        grad_biases = [weight.new_zeros(len(weight), weight.shape[2]) for weight in weights]
        grad_queries = grad_scores = None
        if queries is not None and grad_attention is not None:
            total = torch.baddbmm(grad_attention, grad_pooled, columns.mT)
            mean = (attention * total).sum(-1, keepdim=True)
            grad_scores = attention * (total - mean)
            grad_queries = grad_scores @ columns
            attention = torch.cat([attention, grad_scores], 1)
            grad_pooled = torch.cat([grad_pooled, queries], 1)
        grad_inputs = []
        for b, of_image in enumerate(ctx.layers):
            gradient = Factored(attention[b].T, grad_pooled[b].T)
            if grad_columns is not None:
                gradient = Factored(gradient.dense() + grad_columns[b], None)
            gradient = gradient.select(of_image[-1].active)
            for below, above, grad_weight, grad_bias in reversed(list(zip(
                    of_image, of_image[1:], grad_weights, grad_biases))):
                gradient = backward_layer(gradient, below, above, grad_weight[b], grad_bias[b])
            if ctx.needs_input_grad[1]:
                grad_inputs.append(gradient.dense())
        return (None, torch.stack(grad_inputs) if grad_inputs else None, grad_weights[0],
                grad_queries, grad_scores,
                *(value for pair in zip(grad_weights[1:], grad_biases[1:]) for value in pair))


def forward_layers(inputs: Tensor, first: Tensor, layers: list[Tensor]
                   ) -> tuple[list[Layer], Tensor]:
    """One image's layers, with its inputs as the first of them, and its last activations [L,n].

    Args:
        inputs: [L,e].
        first: weight of the first layer [e,H].
        layers: weight and bias of each further layer.
    """
    every = torch.arange(inputs.shape[1])
    found = [Layer(every, Factored(inputs, None), inputs[:, :0], first)]
    sums = inputs @ first
    for weight, bias in zip(layers[::2], layers[1::2]):
        linear, mixed = split_units(sums)
        active = torch.cat([linear, mixed])
        rows = weight.index_select(0, active)
        if len(found) == 1:
            product = first.index_select(1, linear)
            layer = Layer(active, Factored(inputs, product.T),
                          sums.index_select(1, mixed).relu_(), rows)
            sums = torch.addmm(torch.addmm(bias, inputs, product @ rows[:len(linear)]),
                               layer.mixed, rows[len(linear):])
        else:
            values = sums.index_select(1, active).relu_()
            layer = Layer(active, Factored(values[:, :len(linear)], None), values[:, len(linear):],
                          rows)
            sums = torch.addmm(bias, values, rows)
        found.append(layer)
    linear, mixed = split_units(sums)
    sums.relu_()
    # No layer is above it, so the values of its linear units and its rows are not needed.
    last = Layer(torch.cat([linear, mixed]), Factored(sums[:, :0], None),
                 sums.index_select(1, mixed), None)
    return [*found, last], sums


def split_units(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of the linear and of the mixed units with pre-activations `sums` [L,n].

    Silent units are positive in no column, linear units in all. A unit with a NaN is mixed.
    """
    silent, linear = sums.amax(0) <= 0, sums.amin(0) > 0
    return linear.nonzero()[:, 0], (~silent & ~linear).nonzero()[:, 0]


def backward_layer(gradient: Factored, below: Layer, above: Layer, grad_weight: Tensor,
                   grad_bias: Tensor) -> Factored:
    """The gradient of the active units of `below`.

    Args:
        gradient: of the active units of `above`.
        grad_weight: of the layer `above` [in,out]; it is filled in.
        grad_bias: zeros; the entries of the active units are filled in.
    """
    assert below.rows is not None
    linear, mixed = above.active.tensor_split([above.num_linear])
    positive = above.mixed > 0
    left, right = gradient
    if right is not None and left.shape[1] + len(mixed) < len(left):
        kept = right[:len(linear)]
        left = torch.cat([left, (left @ right[len(linear):].T).mul_(positive)], 1)
    else:  # factors would not be smaller than the gradient itself: treat every unit as mixed
        left = gradient.dense()
        left[:, len(linear):].mul_(positive)
        linear, mixed, kept = linear[:0], above.active, left[:0, :0]
    rank, units = kept.shape[1], below.active[:, None]
    products, total = below.sums(left), left.sum(0)
    grad_bias[linear], grad_bias[mixed] = kept @ total[:rank], total[rank:]
    of_mixed = below.rows.index_select(1, mixed)
    if 0 < rank <= MAX_RANK:
        spread = kept.new_zeros(len(grad_bias), rank).index_copy_(0, linear, kept)
        summed = products.new_zeros(len(grad_weight), rank).index_copy_(0, below.active,
                                                                        products[:, :rank])
        torch.mm(summed, spread.T, out=grad_weight)
        of_linear = below.rows @ spread
    else:
        grad_weight.zero_()
        grad_weight[units, linear] = products[:, :rank] @ kept.T
        of_linear = below.rows.index_select(1, linear) @ kept
    grad_weight[units, mixed] = products[:, rank:]
    return Factored(left, torch.cat([of_linear, of_mixed], 1))
