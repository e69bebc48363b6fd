"""FastStudent: the student for B images at once, each with its own weights.

It computes the same outputs as Student with less work (exact algebra, no approximation):
- Columns differ in their position only, so W1·[T | p_xy] = W_T·T + W_x·p_x + W_y·p_y: one product
  per image, per x and per y instead of one per column, forward and backward. With local patches, a
  small W_I·I_xy is added. The RGB head's first layer is split in the same way.
- The projection commutes with the pooling, so it is applied once per image (and attention head).
  It is applied to each column only if a loss needs the columns' features.
- On a CPU, a wide MLP skips the units that have no effect for an image; see sparse_mlp.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.sparse_mlp import MIN_MULTIPLY_ADDS, SparsePooledMlp
from tta_apm.apm.student import Student
from tta_apm.toolbox.episodes import Parameters


class StudentOutputs(NamedTuple):
    """The outputs of B students, one per image; None for outputs that were not requested."""

    pooled: Tensor  # f_avg [B,D]
    features: Tensor | None  # of the columns [B,L,D]
    colours: Tensor | None  # of the columns [B,L,3]


class FastStudent:
    """Evaluates a Student with stacked weights.

    Args:
        student: gives the shapes, the positional codes and the initial weights.
        columns: indices (row-major, in range(L)) of the columns to use; None uses all.
        column_dtype: dtype of the products over all columns, which are nearly all of the work.
            Products made once per image keep the weights' dtype. None: the weights' dtype
            everywhere.
        sparse: skip the units that have no effect, image by image; see sparse_mlp.py.

    Attributes:
        initial: the student's weights by name. Matrices are stored as [in, out], the layout in
            which their gradients are computed; the first layers are split into the rows for the
            parts of their input: features, T, local, x and y.
    """

    def __init__(self, student: Student, columns: Tensor | None = None, *,
                 column_dtype: torch.dtype | None = None, sparse: bool = False) -> None:
        grid, pooling = student.grid, student.pooling
        self.column_dtype = column_dtype
        self.sparse = sparse
        self.patch = student.patch
        self.columns = columns
        self.num_columns = grid**2 if columns is None else len(columns)
        self.num_layers = len(student.mlp)
        self.local_patch = student.local_patch
        half = student.code.shape[-1] // 2
        self.code_x = student.code[0, :, :half].contiguous()  # [w, p/2]
        self.code_y = student.code[:, 0, half:].contiguous()  # [h, p/2]
        self.grid = grid
        if sparse:
            index = torch.arange(grid**2) if columns is None else columns
            axis = torch.eye(grid).to(student.code)
            # Each column's y and x as one-hot vectors, [L, h+w].
            self.positions = torch.cat([axis[index // grid], axis[index % grid]], 1)
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

    def _split(self, layer: str, position_sizes: dict[str, int], features: int = 0) -> None:
        """Replace a layer's weight by one matrix for each part of its input.

        Args:
            position_sizes: size of each part that differs between columns.
            features: size of the columns' features, the first part of the RGB head's input.
        """
        weight = self.initial.pop(f"{layer}.weight")
        sizes = {"features": features, "T": len(weight) - features - sum(position_sizes.values()),
                 **position_sizes}
        for part, rows in zip(sizes, weight.split(list(sizes.values()))):
            if len(rows):
                self.initial[f"{layer}.{part}"] = rows.clone()

    def patches(self, images: Tensor) -> Tensor:
        """Cut images [B,3,H,W], H = W = grid·patch, into patches [B, L, 3·patch²]."""
        return F.unfold(images, self.patch, stride=self.patch).transpose(1, 2).contiguous()

    def select_columns(self, values: Tensor) -> Tensor:
        """Reduce values [B,L,...] of all columns to the columns in use."""
        return values if self.columns is None else values[:, self.columns]

    def pooled(self, weights: Parameters, patches: Tensor,
               trigger: Tensor | None = None) -> Tensor:
        """f_avg [B,D]; arguments as for `outputs`."""
        return self.outputs(weights, patches, trigger).pooled

    def outputs(self, weights: Parameters, patches: Tensor, trigger: Tensor | None = None, *,
                features: bool = False, colours: bool = False) -> StudentOutputs:
        """The outputs of B students, each for its own image.

        Args:
            weights: the students' weights, `initial` stacked [B, ...].
            patches: the images' patches [B, L, 3·patch²].
            trigger: trigger columns [B,d], for a student with a `given_trigger_dim`.
            features: whether to return the feature of each column.
            colours: whether to return the colour of each column.
        """
        trigger, local = self._trigger(weights, patches, trigger)
        pooled, hidden = self._pool(weights, trigger, local, wants_columns=features or colours)
        if hidden is None or not (features or colours):
            return StudentOutputs(pooled, None, None)
        projected = self._per_column(weights, "projection", hidden)
        column_features = projected.to(pooled.dtype) if features else None
        if not colours:
            return StudentOutputs(pooled, column_features, None)
        hidden = self._product(self._first(weights, "rgb.layers.0", trigger, local), projected,
                               weights["rgb.layers.0.features"]).relu_()
        hidden = self._per_column(weights, "rgb.layers.1", hidden).relu_()
        column_colours = self._per_column(weights, "rgb.layers.2", hidden).to(pooled.dtype)
        return StudentOutputs(pooled, column_features, column_colours)

    def _trigger(self, weights: Parameters, patches: Tensor,
                 trigger: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Trigger columns [B,d], and the columns' I_xy [B,L,k], None without local patches."""
        if trigger is not None and not self.local_patch:
            return trigger, None
        values = torch.baddbmm(weights["conv.bias"][:, :, None], weights["conv.weight"].flatten(2),
                               patches.transpose(1, 2))  # [B, k, L], as Conv2d returns them
        trigger = values.flatten(1) if trigger is None else trigger
        if not self.local_patch:
            return trigger, None
        return trigger, self.select_columns(values.transpose(1, 2))

    def _pool(self, weights: Parameters, trigger: Tensor, local: Tensor | None, *,
              wants_columns: bool) -> tuple[Tensor, Tensor | None]:
        """f_avg [B,D] and the activations [B,L,H] of the MLP's last hidden layer.

        The sparse path returns None for the activations unless `wants_columns`.
        """
        queries, offsets = self._queries(weights)
        if self.sparse and self._is_wide(weights):
            layers = [weights[f"mlp.{layer}.{kind}"] for layer in range(1, self.num_layers)
                      for kind in ("weight", "bias")]
            pooled, attention, hidden = SparsePooledMlp.apply(
                wants_columns, *self._split_first(weights, trigger, local), queries, offsets,
                *layers)
        else:
            hidden = self._activations(weights, trigger, local)
            pooled, attention = self._weighted_mean(hidden, queries, offsets,
                                                    weights["projection.bias"].dtype)
        if attention is None:
            return _linear(weights, "projection", pooled)[:, 0], hidden
        return self._value(weights, pooled, attention), hidden

    def _activations(self, weights: Parameters, trigger: Tensor, local: Tensor | None) -> Tensor:
        """The activations [B,L,H] of the MLP's last hidden layer."""
        hidden = self._first(weights, "mlp.0", trigger, local)
        for layer in range(1, self.num_layers):
            hidden = self._per_column(weights, f"mlp.{layer}", hidden.relu_())
        return hidden.relu_()

    def _weighted_mean(self, hidden: Tensor, queries: Tensor | None, offsets: Tensor | None,
                       dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The mean [B,heads,H] of activations [B,L,H] under the attention, and that [B,heads,L].

        Without queries it is the plain mean [B,1,H], and None.
        """
        if queries is None or offsets is None:
            return hidden.mean(1, keepdim=True, dtype=dtype), None
        hidden = hidden.to(dtype)
        attention = (queries @ hidden.mT + offsets).softmax(-1)
        return attention @ hidden, attention

    def _is_wide(self, weights: Parameters) -> bool:
        work = sum(weights[f"mlp.{layer}.weight"][0].numel()
                   for layer in range(1, self.num_layers))
        return self.num_columns * work >= MIN_MULTIPLY_ADDS

    def _per_column(self, weights: Parameters, name: str, inputs: Tensor) -> Tensor:
        """Layer `name` applied to every column: [B,L,in] -> [B,L,out]."""
        return self._product(weights[f"{name}.bias"][:, None], inputs, weights[f"{name}.weight"])

    def _product(self, added: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """added + inputs @ weight, computed in the columns' dtype."""
        dtype = self.column_dtype or weight.dtype
        return torch.baddbmm(added.to(dtype), inputs.to(dtype), weight.to(dtype))

    def _first(self, weights: Parameters, layer: str, trigger: Tensor,
               local: Tensor | None) -> Tensor:
        """A first layer applied to the columns' inputs, before its ReLU: [B,L,H]."""
        y_part, x_part = self._parts(weights, layer, trigger)
        if self.columns is None:
            summed = (y_part[:, :, None] + x_part[:, None]).flatten(1, 2)
        else:
            summed = y_part[:, self.columns // self.grid] + x_part[:, self.columns % self.grid]
        return summed if local is None else torch.baddbmm(summed, local, weights[f"{layer}.local"])

    def _parts(self, weights: Parameters, layer: str, trigger: Tensor) -> tuple[Tensor, Tensor]:
        """The two summands of a first layer: for each y, with T and bias, [B,h,H]; for each x,
        [B,w,H]."""
        trigger_part = torch.baddbmm(weights[f"{layer}.bias"][:, None], trigger[:, None],
                                     weights[f"{layer}.T"])  # [B, 1, H]
        return (self.code_y @ weights[f"{layer}.y"] + trigger_part,
                self.code_x @ weights[f"{layer}.x"])

    def _split_first(self, weights: Parameters, trigger: Tensor, local: Tensor | None
                     ) -> tuple[Tensor, Tensor]:
        """Inputs [B,L,e] and weights [B,e,H] whose product is the MLP's first layer."""
        parts = torch.cat(self._parts(weights, "mlp.0", trigger), 1)
        positions = self.positions.expand(len(parts), -1, -1)
        if local is None:
            return positions, parts
        return torch.cat([positions, local], 2), torch.cat([parts, weights["mlp.0.local"]], 1)

    # Attention of one query does not need the columns' keys and values. A head's score is
    # q·W_k(P·g + code), so q is multiplied by W_k and P first, and then by the activations g.
    # The biases of the key and of P add the same to all scores, and softmax ignores them.

    def _queries(self, weights: Parameters) -> tuple[Tensor | None, Tensor | None]:
        """Queries [B,heads,H] for the activations, and the scores [B,heads,L] of the columns'
        positions; None and None if the pooling is the mean."""
        if not self.num_heads:
            return None, None
        to_query, to_key, _ = self._in_projections(weights)
        bias = weights["pooling.attention.in_proj_bias"].chunk(3, dim=1)[0]
        query = torch.einsum("bji,bj->bi", to_query, weights["pooling.query"]) + bias
        query = query.unflatten(1, (self.num_heads, -1))
        query = query / query.shape[2] ** 0.5
        key = torch.einsum("bhi,bjhi->bhj", query, to_key.unflatten(2, query.shape[1:]))
        return key @ weights["projection.weight"].mT, key @ self.pooling_code.T

    def _value(self, weights: Parameters, activations: Tensor, attention: Tensor) -> Tensor:
        """f_avg [B,D] from the mean activations [B,heads,H] under the attention [B,heads,L]."""
        to_value = self._in_projections(weights)[2].unflatten(2, (self.num_heads, -1))
        bias = weights["pooling.attention.in_proj_bias"].chunk(3, dim=1)[2]
        pooled = (activations @ weights["projection.weight"] + attention @ self.pooling_code
                  + weights["projection.bias"][:, None])  # [B, heads, D]
        value = torch.einsum("bjhi,bhj->bhi", to_value, pooled).flatten(1) + bias
        return _linear(weights, "pooling.attention.out_proj", value[:, None])[:, 0]

    def _in_projections(self, weights: Parameters) -> tuple[Tensor, ...]:
        """The projections to query, key and value, [B,in,out] each."""
        return weights["pooling.attention.in_proj_weight"].chunk(3, dim=2)


def _linear(weights: Parameters, name: str, inputs: Tensor) -> Tensor:
    """Layer `name` of every episode applied to its inputs: [B,n,in] -> [B,n,out]."""
    return torch.baddbmm(weights[f"{name}.bias"][:, None], inputs, weights[f"{name}.weight"])
