"""SparsePooledMlp has the values and gradients of the dense MLP."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tta_apm.apm.method import Apm
from tta_apm.apm.sparse_mlp import SparsePooledMlp

BATCH, POSITIONS, PARTS, QUERIES = 3, 40, 9, 2
WIDTHS = (30, 24, 18, 12)


@pytest.fixture(params=[0.0, 3.0, 20.0], ids=["mixed", "some mixed", "alike"])
def net(request):
    """Positions, parts, queries, offsets and layers, with columns that differ more or less."""
    torch.manual_seed(0)
    positions = torch.zeros(BATCH, POSITIONS, PARTS)
    positions[:, :, 0] = 1
    positions[:, :, 1:] = torch.randn(BATCH, POSITIONS, PARTS - 1) / (1 + request.param)
    values = [positions, torch.randn(BATCH, PARTS, WIDTHS[0]),
              torch.randn(BATCH, QUERIES, WIDTHS[-1]), torch.randn(BATCH, QUERIES, POSITIONS)]
    for wide, narrow in pairwise(WIDTHS):
        values += [torch.randn(BATCH, wide, narrow) / wide**0.5, torch.randn(BATCH, narrow)]
    return [value.double().requires_grad_() for value in values]


def plain(positions, parts, queries, offsets, *layers):
    hidden = (positions @ parts).relu()
    for weight, bias in zip(layers[::2], layers[1::2]):
        hidden = torch.baddbmm(bias[:, None], hidden, weight).relu()
    if queries is None:
        return hidden.mean(1, keepdim=True), hidden
    attention = (queries @ hidden.mT + offsets).softmax(-1)
    return attention @ hidden, attention, hidden


def kinds(positions, parts, *_):
    sums = positions @ parts
    silent, linear = (sums <= 0).all(1).sum().item(), (sums > 0).all(1).sum().item()
    return silent, linear, BATCH * WIDTHS[0] - silent - linear


def equal(found, expected):
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, expected))


def test_the_fixture_has_units_of_each_kind(net):
    assert kinds(*net)[2] > 5
    if kinds(*net)[2] < 80:
        assert min(kinds(*net)) > 5


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1, 2)],
                         ids=["pooled", "attention", "columns", "all"])
@pytest.mark.parametrize("max_rank", [0, 64])
def test_values_and_gradients_with_attention(net, wanted, max_rank, monkeypatch):
    monkeypatch.setattr("tta_apm.apm.sparse_mlp.MAX_RANK", max_rank)
    found, expected = SparsePooledMlp.apply(2 in wanted, *net), plain(*net)
    weights = [torch.randn_like(value) for value in expected]
    assert equal([found[index] for index in wanted], [expected[index] for index in wanted])
    gradients = [torch.autograd.grad(sum((outputs[index] * weights[index]).sum()
                                         for index in wanted), net, materialize_grads=True)
                 for outputs in (found, expected)]
    assert equal(*gradients)


@pytest.mark.parametrize("wants_columns", [False, True])
def test_values_and_gradients_with_the_mean(net, wants_columns):
    positions, parts, _, _, *layers = net
    net = [positions.detach(), parts, *layers]  # as in a student without local patches
    pooled, _, columns = SparsePooledMlp.apply(wants_columns, *net[:2], None, None, *layers)
    mean, whole = plain(*net[:2], None, None, *layers)
    assert (columns is not None) == wants_columns
    weights = torch.randn_like(mean), torch.randn_like(whole)
    found, expected = (pooled * weights[0]).sum(), (mean * weights[0]).sum()
    if wants_columns:
        found, expected = (a + (b * weights[1]).sum()
                           for a, b in ((found, columns), (expected, whole)))
    assert torch.allclose(pooled, mean, rtol=1e-12)
    assert equal(torch.autograd.grad(found, net[1:]), torch.autograd.grad(expected, net[1:]))


def test_what_is_no_number_stays_none(net):
    net = [value.detach() for value in net]
    net[1][1, 2, 4] = torch.nan
    found, expected = SparsePooledMlp.apply(False, *net)[0], plain(*net)[0]
    assert torch.equal(found.isnan(), expected.isnan()) and found.isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("keywords", [
    {}, {"pooling": "attention"}, {"columns": 9}, {"local_patch": True},
    {"grid_weight": 1.0, "rgb_weight": 1.0}], ids=lambda keywords: "-".join(keywords) or "paper")
def test_apm_fits_the_same_students_either_way(digits_clip, digits_test, monkeypatch, keywords):
    monkeypatch.setattr("tta_apm.apm.fast.MIN_MULTIPLY_ADDS", 0)
    logits = {}
    for sparse in (True, False):
        method = Apm(digits_clip, image_size=32, patch=8, code=32, hidden=(64, 48, 32), steps=10,
                     lr=3e-3, sparse=sparse, **keywords)
        method.chunk = 4
        assert method.student.sparse == sparse
        logits[sparse] = method(digits_test[0][:8])
    assert not torch.equal(*logits.values())
    assert torch.allclose(*logits.values(), atol=1e-4)
