"""Fields: a student's features and colours of an image, all at once or column by column.

Symbols: B images, n of the L = grid² columns (row by row), d entries of a trigger column, p
of the positional code, D of a feature.
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
    """A student and the trigger column of one image, which determine all columns.

    Args:
        student: with a trigger column that its own convolution makes.
        trigger: [d], by Student.trigger, or an interpolation of two such.
    """

    def __init__(self, student: Student, trigger: Tensor) -> None:
        self.student = student
        self.trigger = trigger

    @torch.no_grad()
    def query(self, positions: Iterable[tuple[int, int]]) -> Iterator[Column]:
        """The columns at positions (x, y), one by one, in that order (asynchronous perception).

        Memory holds one column at a time: `positions` may be any iterable, however long, with
        repetitions.

        Raises:
            UserError: for a position outside the grid, when its turn comes.
        """
        for x, y in positions:
            self._check(x, y)
            index = torch.tensor([y * self.student.grid + x], device=self.trigger.device)
            features, colours = decode(self.student, self.trigger[None], index)
            yield Column(x, y, features[0, 0], None if colours is None else colours[0, 0])

    @torch.no_grad()
    def features(self) -> Tensor:
        """Features of all columns, [L,D]."""
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
        raise UserError(f"{steps} interpolations: there is at least one step from A to B")
    for step in range(steps + 1):
        weight = step / steps
        yield Field(start.student, (1 - weight) * start.trigger + weight * end.trigger)


def running_mean(features: Iterable[Tensor]) -> Tensor:
    """The mean of features that come one by one, in constant memory (Eq. 2).

    f ← (n·f + f_ij) / (n + 1), written as a small correction of f. ValueError if none come.
    """
    mean = None
    for count, feature in enumerate(features):
        mean = feature.clone() if mean is None else mean.add_(feature - mean, alpha=1 / (count + 1))
    if mean is None:
        raise ValueError("there is no mean of no features")
    return mean


def decode(student: Student, triggers: Tensor, columns: Tensor | None = None
           ) -> tuple[Tensor, Tensor | None]:
    """Features [B,n,D] and colours [B,n,3], if there is an RGB head, of trigger columns [B,d].

    The same numbers as Student.columns and Student.colours, but the first layers' product with the
    trigger column is computed once per image, not once per column.

    Args:
        columns: their indices [n], row by row; None takes all L columns.
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
    """Linear layers with ReLU between on the concatenation of parts, which may broadcast."""
    first, *rest = layers
    weights = first.weight.split([part.shape[-1] for part in parts], dim=1)
    hidden = first.bias + sum(part @ weight.T for part, weight in zip(parts, weights))
    for layer in rest:
        hidden = layer(F.relu(hidden))
    return hidden


def error_map(features: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each column, [L], of features [L,D] against a teacher's [L,D]."""
    return (features - targets).square().mean(-1)
