"""The student for B images at once, each with weights of its own.

Same numbers as Student, less work (exact algebra, no approximation):
- columns differ in their place only, so W1·[T | p_xy] = W_T·T + W_x·p_x + W_y·p_y: one product for
  the image, one for each x and each y, instead of one for each column; backward likewise. I_xy,
  if columns are given it, adds a small W_I·I_xy. The RGB head's first layer is split like this too;
- the projection commutes with the pooling: it is applied once per image (and head), and to each
  column only where a loss asks for the columns' features;
- on a CPU, a wide MLP leaves out what changes nothing for this image: live.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.sparse_mlp import WORTH_IT, LivePooledMlp
from tta_apm.apm.student import Student
from tta_apm.toolbox.episodes import Parameters


class Outputs(NamedTuple):
    """What students make of their images; None for what was not asked for."""

    pooled: Tensor  # f_avg [B,D]
    features: Tensor | None  # of the columns [B,L,D]
    colours: Tensor | None  # of the columns [B,L,3]


class FastStudent:
    """Evaluates a Student with stacked weights.

    Args:
        student: gives the shapes, the fixed codes and the weights to start from.
        columns: places (row-major, in range(L)) of the columns to use; None uses all.
        low: type of the products over all columns, of which there are many; what is made once
            per image keeps the weights' type, as it costs little and counts most. None: all do.
        live: leave out what changes nothing, images one after the other; see live.py.

    Attributes:
        initial: the student's weights; matrices as [in, out], which is how their gradients come
            out of a product, and the first layers' split into their parts: T, local, x and y.
    """

    def __init__(self, student: Student, columns: Tensor | None = None, *,
                 low: torch.dtype | None = None, live: bool = False) -> None:
        grid, pooling = student.grid, student.pooling
        self.low = low
        self.live = live
        self.patch = student.patch
        self.columns = columns
        self.num_columns = grid**2 if columns is None else len(columns)
        self.num_layers = len(student.mlp)
        self.local_patch = student.local_patch
        half = student.code.shape[-1] // 2
        self.code_x = student.code[0, :, :half].contiguous()  # [w, p/2]
        self.code_y = student.code[:, 0, half:].contiguous()  # [h, p/2]
        self.grid = grid
        if live:
            place = torch.arange(grid**2) if columns is None else columns
            axis = torch.eye(grid).to(student.code)
            self.places = torch.cat([axis[place // grid], axis[place % grid]], 1)  # [L, h+w]
        self.initial = {name: (value.detach().T if value.dim() == 2 else value.detach()).clone(
            memory_format=torch.contiguous_format) for name, value in student.named_parameters()}
        kernels = student.conv.out_channels if student.conv and student.local_patch else 0
        self._split("mlp.0", {"local": kernels, "x": half, "y": half})
        if student.rgb is not None:
            self._split("rgb.layers.0", {"local": kernels, "x": half, "y": half},
                        features=student.projection.out_features)
        self.num_heads = 0
        if pooling is not None:
            self.num_heads = pooling.attention.num_heads
            self.pooling_code = pooling.code if columns is None else pooling.code[columns]

    def _split(self, layer: str, of_place: dict[str, int], features: int = 0) -> None:
        """Replace the weight of a layer by its rows for each part of its input."""
        weight = self.initial.pop(f"{layer}.weight")
        sizes = {"features": features, "T": len(weight) - features - sum(of_place.values()),
                 **of_place}
        for part, rows in zip(sizes, weight.split(list(sizes.values()))):
            if len(rows):
                self.initial[f"{layer}.{part}"] = rows.clone()

    def patches(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W], H = W = grid·patch, as columns of pixels [B, L, 3·patch²]."""
        return F.unfold(images, self.patch, stride=self.patch).transpose(1, 2).contiguous()

    def choose(self, values: Tensor) -> Tensor:
        """Of values [B,L,...] of all columns those of the columns in use."""
        return values if self.columns is None else values[:, self.columns]

    def pooled(self, weights: Parameters, patches: Tensor, tokens: Tensor | None = None) -> Tensor:
        """f_avg [B,D] of images given as `patches` [B, L, 3·patch²]; see outputs."""
        return self.outputs(weights, patches, tokens).pooled

    def outputs(self, weights: Parameters, patches: Tensor, tokens: Tensor | None = None, *,
                features: bool = False, colours: bool = False) -> Outputs:
        """What the students make of their images.

        Args:
            patches: of the images, [B, L, 3·patch²].
            tokens: trigger columns [B,d] for students that are handed one.
            features, colours: whether those of each column are wanted.
        """
        trigger, local = self._trigger(weights, patches, tokens)
        pooled, hidden = self._pool(weights, trigger, local, wants_columns=features or colours)
        if hidden is None:
            return Outputs(pooled, None, None)
        of_columns = self._wide(weights, "projection", hidden)
        if not colours:
            return Outputs(pooled, of_columns.to(pooled.dtype), None)
        hidden = self._product(self._first(weights, "rgb.layers.0", trigger, local), of_columns,
                               weights["rgb.layers.0.features"]).relu_()
        hidden = self._wide(weights, "rgb.layers.1", hidden).relu_()
        return Outputs(pooled, of_columns.to(pooled.dtype) if features else None,
                       self._wide(weights, "rgb.layers.2", hidden).to(pooled.dtype))

    def _trigger(self, weights: Parameters, patches: Tensor,
                 tokens: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Trigger columns [B,d], and I_xy [B,L,k] of the columns if they are given it."""
        if tokens is not None and not self.local_patch:
            return tokens, None
        values = torch.baddbmm(weights["conv.bias"][:, :, None], weights["conv.weight"].flatten(2),
                               patches.transpose(1, 2))  # [B, k, L], as Conv2d gives them
        trigger = values.flatten(1) if tokens is None else tokens
        if not self.local_patch:
            return trigger, None
        return trigger, self.choose(values.transpose(1, 2))

    def _pool(self, weights: Parameters, trigger: Tensor, local: Tensor | None, *,
              wants_columns: bool) -> tuple[Tensor, Tensor | None]:
        """f_avg [B,D] and, if wanted, the activations [B,L,H] of the MLP's last layer."""
        read, attention, hidden = self._read(weights, trigger, local, *self._queries(weights),
                                             wants_columns)
        if attention is None:
            return _linear(weights, "projection", read)[:, 0], hidden
        return self._value(weights, read, attention), hidden

    def _read(self, weights: Parameters, trigger: Tensor, local: Tensor | None,
              queries: Tensor | None, offsets: Tensor | None, wants_columns: bool
              ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The MLP and the pooling of its activations: see live.LivePooledMlp."""
        if self.live and self._is_wide(weights):
            layers = [weights[f"mlp.{layer}.{kind}"] for layer in range(1, self.num_layers)
                      for kind in ("weight", "bias")]
            return LivePooledMlp.apply(wants_columns, *self._split_first(weights, trigger, local),
                                       queries, offsets, *layers)
        hidden = self._first(weights, "mlp.0", trigger, local)
        for layer in range(1, self.num_layers):
            hidden = self._wide(weights, f"mlp.{layer}", hidden.relu_())
        hidden = hidden.relu_()
        columns = hidden if wants_columns else None
        full = weights["projection.bias"].dtype
        if queries is None or offsets is None:
            return hidden.mean(1, keepdim=True, dtype=full), None, columns
        hidden = hidden.to(full)
        attention = (queries @ hidden.mT + offsets).softmax(-1)
        return attention @ hidden, attention, columns

    def _is_wide(self, weights: Parameters) -> bool:
        work = sum(weights[f"mlp.{layer}.weight"][0].numel()
                   for layer in range(1, self.num_layers))
        return self.num_columns * work >= WORTH_IT

    def _wide(self, weights: Parameters, name: str, inputs: Tensor) -> Tensor:
        """Layer `name` for all columns: [B,L,in] -> [B,L,out]."""
        return self._product(weights[f"{name}.bias"][:, None], inputs, weights[f"{name}.weight"])

    def _product(self, added: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """added + inputs @ weight, in the type of the products over all columns."""
        low = self.low or weight.dtype
        return torch.baddbmm(added.to(low), inputs.to(low), weight.to(low))

    def _first(self, weights: Parameters, layer: str, trigger: Tensor,
               local: Tensor | None) -> Tensor:
        """What layer `layer` makes of the columns' inputs, [B,L,H], before its activation."""
        of_y, of_x = self._parts(weights, layer, trigger)
        if self.columns is None:
            summed = (of_y[:, :, None] + of_x[:, None]).flatten(1, 2)
        else:
            summed = of_y[:, self.columns // self.grid] + of_x[:, self.columns % self.grid]
        return summed if local is None else torch.baddbmm(summed, local, weights[f"{layer}.local"])

    def _parts(self, weights: Parameters, layer: str, trigger: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of each y with the image [B,h,H] and of each x [B,w,H]; it adds them."""
        of_image = torch.baddbmm(weights[f"{layer}.bias"][:, None], trigger[:, None],
                                 weights[f"{layer}.T"])  # [B, 1, H]
        return (self.code_y @ weights[f"{layer}.y"] + of_image,
                self.code_x @ weights[f"{layer}.x"])

    def _split_first(self, weights: Parameters, trigger: Tensor, local: Tensor | None
                     ) -> tuple[Tensor, Tensor]:
        """Two factors of what the MLP's first layer makes of the columns, [B,L,e] and [B,e,H]."""
        parts = torch.cat(self._parts(weights, "mlp.0", trigger), 1)
        places = self.places.expand(len(parts), -1, -1)
        if local is None:
            return places, parts
        return torch.cat([places, local], 2), torch.cat([parts, weights["mlp.0.local"]], 1)

    # Attention of one query: keys and values are never formed for each column. A head's score is
    # q·W_k(P·g + code): the query is carried through W_k and P to meet the activations g
    # themselves. What adds the same to all scores (the key's bias, P's) drops out.

    def _queries(self, weights: Parameters) -> tuple[Tensor | None, Tensor | None]:
        """What the activations meet [B,heads,H], and what the places add to the scores
        [B,heads,L]; None and None if the pooling is the mean."""
        if not self.num_heads:
            return None, None
        to_query, to_key, _ = self._in_projections(weights)
        bias = weights["pooling.attention.in_proj_bias"].chunk(3, dim=1)[0]
        query = torch.einsum("bji,bj->bi", to_query, weights["pooling.query"]) + bias
        query = query.unflatten(1, (self.num_heads, -1))
        query = query / query.shape[2] ** 0.5
        key = torch.einsum("bhi,bjhi->bhj", query, to_key.unflatten(2, query.shape[1:]))
        return key @ weights["projection.weight"].mT, key @ self.pooling_code.T

    def _value(self, weights: Parameters, read: Tensor, attention: Tensor) -> Tensor:
        """f_avg [B,D] of activations [B,heads,H] read with the attention [B,heads,L]."""
        to_value = self._in_projections(weights)[2].unflatten(2, (self.num_heads, -1))
        bias = weights["pooling.attention.in_proj_bias"].chunk(3, dim=1)[2]
        pooled = (read @ weights["projection.weight"] + attention @ self.pooling_code
                  + weights["projection.bias"][:, None])  # [B, heads, D]
        value = torch.einsum("bjhi,bhj->bhi", to_value, pooled).flatten(1) + bias
        return _linear(weights, "pooling.attention.out_proj", value[:, None])[:, 0]

    def _in_projections(self, weights: Parameters) -> tuple[Tensor, ...]:
        """To query, key and value, [B,in,out] each."""
        return weights["pooling.attention.in_proj_weight"].chunk(3, dim=2)


def _linear(weights: Parameters, name: str, inputs: Tensor) -> Tensor:
    """Layer `name` of every episode: [B,n,in] -> [B,n,out]."""
    return torch.baddbmm(weights[f"{name}.bias"][:, None], inputs, weights[f"{name}.weight"])
