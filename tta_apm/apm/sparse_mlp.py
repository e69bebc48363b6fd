"""An MLP of ReLU layers, and the pooling of its columns, without idle arithmetic: for CPUs.

Test-time training makes an image's columns alike. After a few steps many of a layer's units are 0
in every column ("silent") and most others in none ("linear"); the rest ("mixed") are the fewer the
higher the layer. Nothing is approximated:
- Silent units need no product, in either direction.
- The first layer is the sum of a row's and of a column's part. What the second makes of its linear
  units is so, too: one product for each row and each column, instead of one for each pair.
- The gradient that the pooling sends to L columns of n units is thin: [L,q] @ [q,n] with one q for
  each query. A linear unit passes it on as it is, a mixed one adds one to q. It is kept in this
  form as long as q is below L.
Which units these are differs from image to image, so the images of a stack go one after the other;
a GPU, which wants them in one program, takes the plain products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Multiply-adds for one image in the layers after the first, below which the search costs more.
WORTH_IT = 2**25


class Layer(NamedTuple):
    """An image's units of a layer that are not silent, the linear ones first."""

    live: Tensor  # their places [n]
    num_linear: int
    values: Tensor  # what they say to each column [L,n]


class Gradient(NamedTuple):
    """Of L columns of n units: left [L,q] @ right [n,q]ᵀ; or left [L,n] alone."""

    left: Tensor
    right: Tensor | None

    def whole(self) -> Tensor:
        return self.left if self.right is None else self.left @ self.right.T

    def at(self, units: Tensor) -> Gradient:
        """That of some units."""
        if self.right is None:
            return Gradient(self.left.index_select(1, units), None)
        return Gradient(self.left, self.right.index_select(0, units))


class LivePooledMlp(Function):
    """Pools what an MLP makes of columns, whose first layer is a product of two matrices.

    apply(wants_columns, places, parts, queries, offsets, weight, bias, weight, bias, ...) takes
        places [B,L,e] and parts [B,e,H]: places @ parts is what the first layer makes of them;
        queries [B,h,n] and offsets [B,h,L]: softmax(queries @ columnsᵀ + offsets) weighs the
            columns; None and None: their mean, as one query;
        weight [B,in,out] and bias [B,out] of each further layer
    and gives the pooled columns [B,h,n], the weights [B,h,L], None for the mean, and the columns
    [B,L,n], None if not wanted.
    """

    @staticmethod
    def forward(ctx: Any, wants_columns: bool, places: Tensor, parts: Tensor,
                queries: Tensor | None, offsets: Tensor | None, *layers: Tensor
                ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.images = []
        pooled, weights, columns = [], [], []
        for b in range(len(parts)):
            passed, last = _climb(places[b], parts[b], [value[b] for value in layers])
            if queries is None or offsets is None:
                attention = last.new_full((1, len(last)), 1 / len(last))
            else:
                attention = torch.addmm(offsets[b], queries[b], last.T).softmax(-1)
            ctx.images.append(passed)
            pooled.append(attention @ last)
            weights.append(attention)
            columns.append(last)
        attention, last = torch.stack(weights), torch.stack(columns)
        ctx.save_for_backward(attention, last, queries, parts, *layers[::2])
        return (torch.stack(pooled), None if queries is None else attention,
                last if wants_columns else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_pooled: Tensor, of_attention: Tensor | None,
                 of_columns: Tensor | None) -> tuple[Tensor | None, ...]:
        attention, columns, queries, *weights = ctx.saved_tensors
        of_weights = list(map(torch.zeros_like, weights))
        of_biases = [weight.new_zeros(len(weight), weight.shape[2]) for weight in weights]
        of_queries = of_scores = None
        if queries is not None and of_attention is not None:
            to_attention = torch.baddbmm(of_attention, of_pooled, columns.mT)
            mean = (attention * to_attention).sum(-1, keepdim=True)
            of_scores = attention * (to_attention - mean)
            of_queries = of_scores @ columns
            attention = torch.cat([attention, of_scores], 1)
            of_pooled = torch.cat([of_pooled, queries], 1)
        of_places = []
        for b, passed in enumerate(ctx.images):
            gradient = Gradient(attention[b].T, of_pooled[b].T)
            if of_columns is not None:
                gradient = Gradient(gradient.whole() + of_columns[b], None)
            gradient = gradient.at(passed[-1].live)
            for below, above, weight, of_weight, of_bias in reversed(list(zip(
                    passed, passed[1:], weights, of_weights, of_biases))):
                gradient = _descend(gradient, below, above, weight[b], of_weight[b], of_bias[b])
            if ctx.needs_input_grad[1]:
                of_places.append(gradient.whole())
        return (None, torch.stack(of_places) if of_places else None, of_weights[0],
                of_queries, of_scores,
                *(value for pair in zip(of_weights[1:], of_biases[1:]) for value in pair))


def _climb(places: Tensor, parts: Tensor, layers: list[Tensor]) -> tuple[list[Layer], Tensor]:
    """The layers of an image, its places the first of them, and the columns [L,n] at last."""
    passed = [Layer(torch.arange(places.shape[1]), places.shape[1], places)]
    sums = places @ parts
    for weight, bias in zip(layers[::2], layers[1::2]):
        layer = _look(sums)
        rows = weight.index_select(0, layer.live)
        if len(passed) == 1:
            linear, mixed = layer.live[:layer.num_linear], layer.values[:, layer.num_linear:]
            of_linear = parts.index_select(1, linear) @ rows[:layer.num_linear]
            sums = torch.addmm(torch.addmm(bias, places, of_linear), mixed,
                               rows[layer.num_linear:])
        else:
            sums = torch.addmm(bias, layer.values, rows)
        passed.append(layer)
    return [*passed, _look(sums)], sums.relu_()


def _look(sums: Tensor) -> Layer:
    """Which units of sums [L,n] are silent, which linear. What is no number is neither."""
    silent, linear = sums.amax(0) <= 0, sums.amin(0) > 0
    places = _where(linear)
    live = torch.cat([places, _where(~silent & ~linear)])
    return Layer(live, len(places), sums.index_select(1, live).relu_())


def _where(mask: Tensor) -> Tensor:
    """The places [n] at which a mask is true."""
    return mask.nonzero()[:, 0]


def _descend(gradient: Gradient, below: Layer, above: Layer, weight: Tensor, of_weight: Tensor,
             of_bias: Tensor) -> Gradient:
    """From the live units of the layer `above` to those `below`; fills in what the weights get."""
    linear, mixed = above.live.tensor_split([above.num_linear])
    positive = above.values[:, above.num_linear:] > 0
    left, right = gradient
    if right is not None and left.shape[1] + len(mixed) < len(left):
        kept = right[:above.num_linear]
        left = torch.cat([left, (left @ right[above.num_linear:].T).mul_(positive)], 1)
    else:  # as wide as the columns are many: every unit counts as mixed
        left = gradient.whole()
        left[:, above.num_linear:].mul_(positive)
        linear, mixed, kept = linear[:0], above.live, left[:0, :0]
    thin = kept.shape[1]
    of_both, total, rows = below.values.T @ left, left.sum(0), below.live[:, None]
    of_weight[rows, linear] = of_both[:, :thin] @ kept.T
    of_weight[rows, mixed] = of_both[:, thin:]
    of_bias[linear], of_bias[mixed] = kept @ total[:thin], total[thin:]
    return Gradient(left, torch.cat([weight[rows, linear] @ kept, weight[rows, mixed]], 1))
