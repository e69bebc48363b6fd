"""The contract of a method, over every registered one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tta_apm.method import Method
from tta_apm.registry import METHODS

# Paper-sized defaults are too large for a test: what each method is run with here.
APM = dict(image_size=32, patch=8, code=32, hidden=(64, 32), steps=3, lr=3e-3)
SMALL = {"apm": APM,
         "apm_surviving": APM,
         "memo": dict(num_views=4),
         "memo_surviving": dict(num_views=4, optimizer="adamw"),
         "one_sample": dict(net="mlp", hidden=(48,), steps=3),
         "tpt": dict(num_views=10),
         "tpt_surviving": dict(num_views=10),
         "rmt": dict(num_warm_up=64, warm_up_batch_size=32),
         "ttt": dict(steps=2, num_views=4),
         "ttt_mae": dict(steps=3, masks=4),
         "ttt_mae_surviving": dict(steps=3, masks=4),
         "ttt_online": dict(num_views=4)}
NAMES = METHODS.names()


@pytest.fixture(params=NAMES)
def method(request, backbones, digits_source) -> Method:
    cls = METHODS.load(request.param)
    keywords = dict(SMALL.get(request.param, {}))
    if "source" in METHODS.signature(request.param).defaults:
        keywords["source"] = digits_source
    return cls(backbones[cls.needs], **keywords)


def run(method: Method, images: Tensor, sizes: list[int]) -> Tensor:
    method.reset()
    with torch.no_grad():
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
        with_grad = torch.cat([method(part) for part in images.split(4)])
    assert torch.equal(with_grad.detach(), under_no_grad)
    assert torch.is_grad_enabled()


def test_reset_makes_a_second_pass_identical(method, digits_test):
    images = digits_test[0][:24]
    assert torch.equal(run(method, images, [8, 8, 8]), run(method, images, [8, 8, 8]))


def test_episodic_methods_see_each_image_alone(method, digits_test):
    if method.scope != "image":
        pytest.skip("depends on its batch or stream by design")
    images = digits_test[0][:9]
    together = run(method, images, [9])
    assert torch.allclose(run(method, images, [1] * 9), together, atol=1e-3)
    assert torch.allclose(run(method, images, [7, 2]), together, atol=1e-3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(run(method, images[order], [9]), together[order], atol=1e-3)


def test_batch_methods_forget_the_batch_before(method, digits_test):
    if method.scope != "batch":
        pytest.skip("not a method of that scope")
    images = digits_test[0]
    alone = run(method, images[50:60], [10])
    after_others = run(method, images[40:60], [10, 10])[10:]
    assert torch.equal(alone, after_others)


def test_stream_methods_remember(method, digits_test):
    """Else their scope is wrong and a sweep would not reset them."""
    if method.scope != "stream":
        pytest.skip("not a method of that scope")
    images = digits_test[0]
    alone = run(method, images[50:60], [10])
    after_others = run(method, images[40:60], [10, 10])[10:]
    assert not torch.equal(alone, after_others)


def test_the_backbone_is_untouched(method, backbones, digits_test):
    backbone = backbones[method.needs]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    run(method, digits_test[0][:8], [4, 4])
    method.reset()
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not backbone.training
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_details_are_per_image(method, digits_test):
    run(method, digits_test[0][:6], [6])
    assert all(value.shape == (6,) for value in method.details.values())


def test_the_images_are_left_as_they_were(method, digits_test):
    images = digits_test[0][:6].clone()
    run(method, images, [6])
    assert torch.equal(images, digits_test[0][:6])
