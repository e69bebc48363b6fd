"""The student's pooled feature for B images at once, each with weights of its own.

Same numbers as Student.forward, less work (exact algebra, no approximation):
- columns differ in their place only, so W1·[T | p_xy] = W_T·T + W_x·p_x + W_y·p_y: one product for
  the image, one for each x and each y, instead of one for each column; backward likewise;
- the projection commutes with the pooling: it is applied once per image (and head).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.student import Student
from tta_apm.episodes import Parameters


class FastStudent:
    """Evaluates a Student with stacked weights.

    Args:
        student: gives the shapes, the fixed codes and the weights to start from.
        columns: places (row-major, in range(L)) of the columns to use; None uses all.

    Attributes:
        initial: the student's weights; matrices as [in, out], which is how their gradients come
            out of a product, and the first layer's split into its parts T, x and y.
    """

    def __init__(self, student: Student, columns: Tensor | None = None) -> None:
        grid, pooling = student.grid, student.pooling
        self.patch = student.patch
        self.columns = columns
        self.num_layers = len(student.mlp)
        half = student.code.shape[-1] // 2
        self.code_x = student.code[0, :, :half].contiguous()  # [w, p/2]
        self.code_y = student.code[:, 0, half:].contiguous()  # [h, p/2]
        self.grid = grid
        self.initial = {name: (value.detach().T if value.dim() == 2 else value.detach()).clone(
            memory_format=torch.contiguous_format) for name, value in student.named_parameters()}
        first = self.initial.pop("mlp.0.weight")
        self.initial["first.T"], self.initial["first.x"], self.initial["first.y"] = (
            part.clone() for part in first.split([len(first) - 2 * half, half, half]))
        self.num_heads = 0
        if pooling is not None:
            self.num_heads = pooling.attention.num_heads
            self.pooling_code = pooling.code if columns is None else pooling.code[columns]

    def patches(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W], H = W = grid·patch, as columns of pixels [B, L, 3·patch²]."""
        return F.unfold(images, self.patch, stride=self.patch).transpose(1, 2).contiguous()

    def pooled(self, weights: Parameters, patches: Tensor) -> Tensor:
        """f_avg [B,D] of images given as `patches` [B, L, 3·patch²]."""
        hidden = self._hidden(weights, patches)
        if self.num_heads:
            return self._attend(weights, hidden)
        return _linear(weights, "projection", hidden.mean(1, keepdim=True))[:, 0]

    def _hidden(self, weights: Parameters, patches: Tensor) -> Tensor:
        """Activations [B, L, last width] before the projection."""
        kernels = weights["conv.weight"].flatten(2)  # [B, k, 3·patch²]
        trigger = torch.baddbmm(weights["conv.bias"][:, :, None], kernels,
                                patches.transpose(1, 2)).flatten(1)  # [B, d], as Conv2d flattens
        of_image = torch.baddbmm(weights["mlp.0.bias"][:, None], trigger[:, None],
                                 weights["first.T"])  # [B, 1, H]
        of_x = self.code_x @ weights["first.x"]  # [B, w, H]
        of_y = self.code_y @ weights["first.y"] + of_image  # [B, h, H]
        if self.columns is None:
            hidden = (of_y[:, :, None] + of_x[:, None]).flatten(1, 2)
        else:
            hidden = of_y[:, self.columns // self.grid] + of_x[:, self.columns % self.grid]
        hidden = hidden.relu_()
        for layer in range(1, self.num_layers):
            hidden = _linear(weights, f"mlp.{layer}", hidden).relu_()
        return hidden

    def _attend(self, weights: Parameters, hidden: Tensor) -> Tensor:
        """Attention of one query: keys and values are never formed for each column.

        A head's score is q·W_k(P·g + code): the query is carried through W_k and P to meet the
        activations g themselves. What adds the same to all scores (the key's bias, P's) drops out.
        """
        batch, dim = weights["pooling.query"].shape
        heads = (batch, self.num_heads, dim // self.num_heads)
        in_weight = weights["pooling.attention.in_proj_weight"]
        to_query, to_key, to_value = in_weight.split(dim, dim=2)  # [B, in, out] each
        bias_query, _, bias_value = weights["pooling.attention.in_proj_bias"].split(dim, dim=1)
        projection = weights["projection.weight"]  # [B, last width, D]

        query = torch.einsum("bji,bj->bi", to_query, weights["pooling.query"]) + bias_query
        query = query.view(heads) / heads[2] ** 0.5
        key = torch.einsum("bhi,bjhi->bhj", query, to_key.unflatten(2, heads[1:]))  # [B, heads, D]
        scores = key @ projection.transpose(1, 2) @ hidden.transpose(1, 2)
        attention = (scores + key @ self.pooling_code.T).softmax(-1)  # [B, heads, L]
        pooled = (attention @ hidden @ projection + attention @ self.pooling_code
                  + weights["projection.bias"][:, None])  # [B, heads, D]
        value = torch.einsum("bjhi,bhj->bhi", to_value.unflatten(2, heads[1:]), pooled)
        value = value.flatten(1) + bias_value
        return _linear(weights, "pooling.attention.out_proj", value[:, None])[:, 0]


def _linear(weights: Parameters, name: str, inputs: Tensor) -> Tensor:
    """Layer `name` of every episode: [B,n,in] -> [B,n,out]."""
    return torch.baddbmm(weights[f"{name}.bias"][:, None], inputs, weights[f"{name}.weight"])
