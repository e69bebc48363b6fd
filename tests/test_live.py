"""Products without the units that need none: the same values and gradients as the whole."""

from __future__ import annotations

import pytest
import torch

from tta_apm.apm.live import ReluLinear, SumReluLinear
from tta_apm.apm.method import Apm

BATCH, ROWS, COLUMNS, WIDTH, OUT = 3, 4, 5, 30, 12


@pytest.fixture
def layer():
    """Inputs in which a third of the units is 0 in all places, a third in none; and a layer."""
    torch.manual_seed(0)
    shift = torch.tensor([-20.0, 0.0, 20.0]).repeat(WIDTH // 3)
    parts = [torch.randn(BATCH, 1, WIDTH) + torch.randn(BATCH, places, WIDTH)
             for places in (ROWS, COLUMNS)]
    parts[0] = parts[0] + torch.stack([shift.roll(b) for b in range(BATCH)])[:, None]
    return [value.double().requires_grad_() for value in (
        *parts, torch.randn(BATCH, WIDTH, OUT), torch.randn(BATCH, OUT))]


def summed(rows, columns):
    return (rows[:, :, None] + columns[:, None]).flatten(1, 2)


def plain(rows, columns, weight, bias):
    return torch.baddbmm(bias[:, None], summed(rows, columns).relu(), weight)


def of_sum(rows, columns, weight, bias):
    return ReluLinear.apply(summed(rows, columns), weight, bias)


@pytest.mark.parametrize("function", [SumReluLinear.apply, of_sum], ids=["parts", "sum"])
def test_values_and_gradients_equal_the_plain_layers(layer, function):
    kinds = summed(*layer[:2])
    assert (kinds <= 0).all(1).sum() >= BATCH and (kinds > 0).all(1).sum() >= BATCH
    weights = torch.randn(BATCH, ROWS * COLUMNS, OUT).double()
    weights[0, :, :5] = 0  # outputs that the loss takes no note of
    found, expected = function(*layer), plain(*layer)
    assert torch.allclose(found, expected, rtol=1e-12)
    for a, b in zip(torch.autograd.grad((found * weights).sum(), layer),
                    torch.autograd.grad((expected * weights).sum(), layer)):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("function", [SumReluLinear.apply, of_sum], ids=["parts", "sum"])
def test_what_is_no_number_stays_none(layer, function):
    rows, columns, weight, bias = (value.detach() for value in layer)
    rows[1, 2, 4] = torch.nan
    found, expected = (run(rows, columns, weight, bias) for run in (function, plain))
    assert torch.equal(found.isnan(), expected.isnan()) and found.isnan().any()


def test_apm_fits_the_same_students_either_way(digits_clip, digits_test, monkeypatch):
    monkeypatch.setattr("tta_apm.apm.fast.WORTH_IT", 0)
    method = Apm(digits_clip, image_size=32, patch=8, code=32, hidden=(64, 48, 32), steps=10,
                 lr=3e-3)
    method.chunk = 4
    assert method.student.live
    found = method(digits_test[0][:8])
    method.student.live = False
    assert torch.allclose(found, method(digits_test[0][:8]), atol=1e-4)
