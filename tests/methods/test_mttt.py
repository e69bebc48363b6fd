"""MTTT as a row: the effects of its keywords, and that images are independent."""

from __future__ import annotations

import pytest
import torch
from tta_apm_baselines.mttt import Mttt

from tta_apm.backbones.mttt_layers import InnerLoop
from tta_apm.errors import UserError


@pytest.mark.parametrize("layer", ["mlp", "linear", "linear_attention", "self_attention"])
def test_the_defaults_are_the_forward_that_was_trained(layer, digits_mttt, digits_test):
    images = digits_test[0][:8]
    assert torch.equal(Mttt(digits_mttt, layer=layer)(images), digits_mttt(images, layer))


def test_the_keywords_are_the_inner_loop(digits_mttt, digits_test):
    images = digits_test[0][:8]
    keywords = dict(steps=2, mini_batches=4, lr=0.5)
    generator = torch.Generator().manual_seed(7)
    expected = digits_mttt(images, "linear", InnerLoop(2, 4, 0.5, generator))
    assert torch.equal(Mttt(digits_mttt, layer="linear", seed=7, **keywords)(images), expected)
    assert not torch.equal(Mttt(digits_mttt, layer="linear", seed=8, **keywords)(images), expected)


def test_no_steps_and_no_rate_are_the_same(digits_mttt, digits_test):
    images = digits_test[0][:8]
    off = Mttt(digits_mttt, steps=0)(images)
    assert torch.equal(Mttt(digits_mttt, lr=0.0)(images), off)
    assert not torch.allclose(Mttt(digits_mttt)(images), off, atol=1e-2)


def test_with_mini_batches_an_image_does_not_depend_on_its_neighbours(digits_mttt, digits_test):
    images = digits_test[0][:6]
    method = Mttt(digits_mttt, mini_batches=4)
    alone = torch.cat([method(image) for image in images.split(1)])
    torch.testing.assert_close(alone, method(images), rtol=0, atol=1e-4)


def test_an_attention_has_nothing_to_learn(digits_mttt, digits_test):
    images = digits_test[0][:4]
    assert torch.equal(Mttt(digits_mttt, layer="self_attention", steps=0)(images),
                       Mttt(digits_mttt, layer="self_attention")(images))


def test_what_learns_tells_so(digits_mttt, digits_test):
    updated = {}
    for keywords in (dict(), dict(steps=0), dict(layer="linear_attention")):
        method = Mttt(digits_mttt, **keywords)
        method(digits_test[0][:4])
        updated[str(keywords)] = method.did["updated"]
    assert list(updated.values()) == [4, 0, 0]


@pytest.mark.parametrize("keywords, message", [
    (dict(layer="mpl"), "mttt: unknown layer 'mpl': did you mean 'mlp'?"),
    (dict(mini_batches=5), "mttt: tokens 64 is not a multiple of mini_batches 5"),
    (dict(steps=-1), "mttt: steps -1 must be at least 0"),
])
def test_bad_values_are_told(keywords, message, digits_mttt):
    with pytest.raises(UserError) as caught:
        Mttt(digits_mttt, **keywords)
    assert str(caught.value) == message
