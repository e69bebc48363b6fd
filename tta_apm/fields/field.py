"""Field: a student's features and colours of an image, all at once or column by column.

Symbols: B images, n of the L = grid² columns (row by row), d entries of a trigger column, D entries
of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.apm.student import Student
from tta_apm.errors import UserError


class Column(NamedTuple):
    """A student's output at one position."""

    x: int  # from the left, in columns
    y: int  # from the top
    feature: Tensor  # [D]
    colour: Tensor | None  # RGB [3], meant to be in [0,1]; None without an RGB head


class Field:
    """All columns of one image, as a function of their position: a student and a trigger column.

    Args:
        student: a student whose trigger column comes from its own convolution.
        trigger: [d], from Student.trigger, or an interpolation of two trigger columns.
    """

    def __init__(self, student: Student, trigger: Tensor) -> None:
        self.student = student
        self.trigger = trigger

    @torch.no_grad()
    def query(self, positions: Iterable[tuple[int, int]]) -> Iterator[Column]:
        """Compute the columns at positions (x, y) one by one, in order (asynchronous perception).

        Only one column is in memory at a time: `positions` may be long and may have repetitions.

        Raises:
            UserError: when it reaches a position outside the grid.
        """
        for x, y in positions:
            self._check(x, y)
            index = torch.tensor([y * self.student.grid + x], device=self.trigger.device)
            features, colours = decode(self.student, self.trigger[None], index)
            yield Column(x, y, features[0, 0], None if colours is None else colours[0, 0])

    @torch.no_grad()
    def features(self) -> Tensor:
        """The features of all columns, [L,D]."""
        return decode(self.student, self.trigger[None])[0][0]

    @torch.no_grad()
    def colours(self) -> Tensor:
        """The reconstruction [grid,grid,3], clipped to [0,1].

        Raises:
            UserError: if the student has no RGB head.
        """
        colours = decode(self.student, self.trigger[None])[1]
        if colours is None:
            raise UserError("this student has no RGB head and cannot reconstruct: train one with "
                            "RGB_WEIGHT above 0")
        grid = self.student.grid
        return colours[0].view(grid, grid, 3).clamp(0, 1)

    def _check(self, x: int, y: int) -> None:
        side = self.student.grid
        if not (0 <= x < side and 0 <= y < side):
            raise UserError(f"there is no column at {x},{y}: the grid is {side}×{side}, so x and y "
                            f"are from 0 to {side - 1}")


def field_of(student: Student, image: Tensor) -> Field:
    """The field of a normalised image [3,H,W]."""
    with torch.no_grad():
        return Field(student, student.trigger(image))


def interpolate(start: Field, end: Field, steps: int) -> Iterator[Field]:
    """The `steps` + 1 fields v_j = v_1 + j·(v_2 − v_1)/n from one trigger column to another.

    Both ends are exact. Raises UserError if `steps` is not positive.
    """
    if steps < 1:
        raise UserError(f"{steps} interpolation steps: give at least one")
    for step in range(steps + 1):
        weight = step / steps
        yield Field(start.student, (1 - weight) * start.trigger + weight * end.trigger)


def running_mean(features: Iterable[Tensor]) -> Tensor:
    """The mean of features in constant memory (Eq. 2).

    f ← (n·f + f_ij) / (n + 1), computed as f + (f_ij − f) / (n + 1). ValueError for no features.
    """
    mean = None
    for count, feature in enumerate(features):
        mean = feature.clone() if mean is None else mean.add_(feature - mean, alpha=1 / (count + 1))
    if mean is None:
        raise ValueError("no features to average")
    return mean


def decode(student: Student, triggers: Tensor, columns: Tensor | None = None
           ) -> tuple[Tensor, Tensor | None]:
    """Features [B,n,D] and colours [B,n,3] for trigger columns [B,d]; None without an RGB head.

    They equal Student.columns and Student.colours, but the product of the first layers with the
    trigger column is computed once per image, not once per column.

    Args:
        columns: the indices of the columns, [n], row by row; None takes all L columns.
    """
    code = student.code.flatten(0, 1)
    inputs = (triggers[:, None], code if columns is None else code[columns])
    layers = cast(Iterable[nn.Linear], [*student.mlp, student.projection])
    features = _perceptron(layers, inputs)
    colours = None
    if student.rgb is not None:
        layers = cast(Iterable[nn.Linear], student.rgb.layers)
        colours = _perceptron(layers, (features, *inputs))
    return features, colours


def _perceptron(layers: Iterable[nn.Linear], parts: Sequence[Tensor]) -> Tensor:
    """An MLP with ReLU on the concatenation of `parts`, which are broadcast to a common shape."""
    first, *rest = layers
    weights = first.weight.split([part.shape[-1] for part in parts], dim=1)
    hidden = first.bias + sum(part @ weight.T for part, weight in zip(parts, weights))
    for layer in rest:
        hidden = layer(F.relu(hidden))
    return hidden


def error_map(features: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each column, [L], of features [L,D] against a teacher's [L,D]."""
    return (features - targets).square().mean(-1)
