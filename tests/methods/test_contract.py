"""The contract of a method, tested for every registered method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from small_methods import NAMES
from tta_apm.bench.checks import checked_details
from tta_apm.bench.isolation import Guard
from tta_apm.bench.randomness import Randomness, global_state
from tta_apm.method import Method
from tta_apm.registry import METHODS
from tta_apm.toolbox.domain_images import TensorImages

pytestmark = pytest.mark.slow  # sweeps, processes or training

# A second row for methods that also take another kind of backbone.
ROWS = [*NAMES, *(f"{name} BACKBONE {METHODS.signature(name).also_takes}" for name in NAMES
                  if METHODS.signature(name).also_takes)]


# The methods with side results in `details`; all others must have none.
DETAILS = dict.fromkeys(["apm", "apm_surviving", "one_sample"], {"teacher_prediction", "cosine"})


def of_scope(*scopes: str) -> pytest.MarkDecorator:
    """Parametrize a test over the methods of these scopes only."""
    rows = [row for row in ROWS if METHODS.signature(row.split()[0]).scope in scopes]
    return pytest.mark.parametrize("method", rows, indirect=True)


@pytest.fixture(params=ROWS)
def method(request, make_method) -> Method:
    return make_method(request.param)


def run(method: Method, images: Tensor, sizes: list[int]) -> Tensor:
    method.reset()
    with torch.no_grad():
        if method.scope == "domain":
            method.prepare(TensorImages(images))
        return torch.cat([method(part) for part in images.split(sizes)])


def test_the_registry_knows_our_methods():
    assert {"apm", "clip_zero_shot", "norm", "source", "tent"} <= set(NAMES)


def test_logits_are_finite_under_no_grad_and_with_a_short_last_batch(method, digits_test):
    images, _ = digits_test
    logits = run(method, images[:20], [8, 8, 4])
    assert logits.shape == (20, 10)
    assert torch.isfinite(logits).all() and not logits.requires_grad


def test_a_callers_grad_mode_changes_nothing(method, digits_test):
    images = digits_test[0][:8]
    under_no_grad = run(method, images, [4, 4])
    method.reset()
    with torch.enable_grad():
        if method.scope == "domain":
            method.prepare(TensorImages(images))
        with_grad = torch.cat([method(part) for part in images.split(4)])
    assert torch.equal(with_grad.detach(), under_no_grad)
    assert torch.is_grad_enabled()


def test_reset_makes_a_second_pass_identical(method, digits_test):
    images = digits_test[0][:24]
    assert torch.equal(run(method, images, [8, 8, 8]), run(method, images, [8, 8, 8]))


@of_scope("image")
def test_episodic_methods_see_each_image_alone(method, digits_test):
    images = digits_test[0][:9]
    together = run(method, images, [9])
    assert torch.allclose(run(method, images, [1] * 9), together, atol=1e-3)
    assert torch.allclose(run(method, images, [7, 2]), together, atol=1e-3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(run(method, images[order], [9]), together[order], atol=1e-3)


@of_scope("image", "batch")
def test_nothing_of_the_batch_before_is_left(method, digits_test):
    images = digits_test[0]
    alone = run(method, images[50:60], [10])
    after_others = run(method, images[40:60], [10, 10])[10:]
    assert torch.equal(alone, after_others)


@of_scope("stream")
def test_stream_methods_remember(method, digits_test):
    """Otherwise their declared scope is wrong, and a sweep would not reset them."""
    images = digits_test[0]
    alone = run(method, images[50:60], [10])
    after_others = run(method, images[40:60], [10, 10])[10:]
    assert not torch.equal(alone, after_others)


@of_scope("domain")
def test_offline_methods_see_the_domain_first_and_no_batch_then(method, digits_test):
    images = digits_test[0][:24]
    together = run(method, images, [24])
    with torch.no_grad():
        assert torch.allclose(torch.cat([method(part) for part in images.split(7)]), together,
                              atol=1e-4)
        method.reset()
        assert not torch.allclose(method(images), together, atol=1e-4)  # not yet prepared


@pytest.mark.parametrize("row", ROWS)
def test_details_are_per_image_or_none_at_all(row, make_method, digits_test):
    method = make_method(row)
    for count in (6, 2):
        run(method, digits_test[0][:count], [count])
        assert method.details.keys() == DETAILS.get(row.split()[0], set())
        assert checked_details(method.details, count).keys() == method.details.keys()


@pytest.mark.parametrize("row", ROWS)
def test_nothing_is_changed_that_is_not_its_own(row, make_method, backbones, digits_test):
    """Uses the sweep's guard around constructor, reset, prepare, forward and details."""
    name, _, kind = row.partition(" BACKBONE ")
    guard = Guard(0, backbones[kind or METHODS.load(name).needs])
    method = guard.call(make_method, row)
    images = digits_test[0][:8].clone()
    with torch.no_grad():
        guard.call(method.prepare, TensorImages(images))
        for part in images.split(4):
            guard.call(method, part)
            guard.call(getattr, method, "details")
    guard.call(method.reset)
    guard.check()
    assert torch.equal(images, digits_test[0][:8])


@pytest.mark.parametrize("row", ROWS)
def test_global_random_numbers_neither_matter_nor_move(row, make_method, digits_test):
    """The sweep's guard would restore the generators, but other loops do not."""
    logits = []
    for seed in (1, 2):
        with Randomness(seed):
            method = make_method(row)  # torch's layers sample weights, which are then overwritten
            before = global_state()
            logits.append(run(method, digits_test[0][:8], [4, 4]))
            after = global_state()
        assert before[0] == after[0] and torch.equal(before[2], after[2])
        assert before[1][2] == after[1][2] and (before[1][1] == after[1][1]).all()
    assert torch.equal(*logits)
