"""T3A: against a plain implementation, and known errors of other implementations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from tta_apm_baselines.t3a import T3a

from tta_apm.errors import UserError


def plain(net, batches, *, num_supports, inserts_first=True):
    """The paper's algorithm, class by class."""
    layer = net.net.fc
    supports = [[(0.0, w / w.norm())] for w in layer.weight]
    for k, w in enumerate(layer.weight):
        p = layer(w).softmax(0)
        supports[k] = [(-(p * p.log()).sum().item(), w / w.norm())]
    results = []
    for images in batches:
        features = net.net.forward_head(net.net.forward_features(net.prepare(images)),
                                        pre_logits=True)
        old = [list(of_class) for of_class in supports]
        for z in features:
            p = layer(z).softmax(0)
            of_class = supports[p.argmax()]
            of_class.append((-(p * p.log()).sum().item(), z / z.norm()))
        if num_supports:
            supports = [sorted(of_class, key=lambda item: item[0])[:num_supports]
                        for of_class in supports]
        for z in features:
            means = [sum(s for _, s in of_class) for of_class
                     in (supports if inserts_first else old)]
            results.append(torch.stack([z @ (mean / mean.norm()) for mean in means]))
    return torch.stack(results).detach()


@pytest.mark.slow
@pytest.mark.parametrize("num_supports", [0, 1, 5])
def test_it_does_what_a_plain_one_does(exact_resnet, images, num_supports):
    batches = images.double().split(20)
    method = T3a(exact_resnet, num_supports=num_supports)
    result = torch.cat([method(batch) for batch in batches])
    expected = plain(exact_resnet, batches, num_supports=num_supports)
    assert torch.allclose(result, expected, rtol=0, atol=1e-12)
    assert (expected.argmax(1) != exact_resnet(images.double()).argmax(1)).any()


def test_a_batch_is_predicted_after_its_features_have_joined(exact_resnet, images):
    batches = images.double().split(20)
    method = T3a(exact_resnet, num_supports=5)
    result = torch.cat([method(batch) for batch in batches])
    before = plain(exact_resnet, batches, num_supports=5, inserts_first=False)
    assert (result - before).abs().max() > 1e-2


def test_supports_are_pruned_or_grow_with_the_stream(digits_resnet, images):
    few, all_ = T3a(digits_resnet, num_supports=3), T3a(digits_resnet, num_supports=0)
    for batch in images.split(20):
        few(batch), all_(batch)
        assert few.classes.bincount().max() == 3
        assert len(few.supports) == len(few.entropies) == len(few.classes)
    assert len(all_.supports) == 10 + 100


def test_reset_leaves_the_last_layer_s_weights_only(digits_resnet, images):
    method = T3a(digits_resnet)
    first = method(images[:20])
    assert not torch.equal(method(images[:20]), first)
    method.reset()
    assert torch.equal(method(images[:20]), first)
    assert len(method.supports) == 30


def test_the_network_stays_as_it_is(digits_resnet, images):
    method = T3a(digits_resnet)
    before = copy.deepcopy(method.head.classifier.state_dict())
    method(images)
    after = method.head.classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_bad_values_are_told(digits_resnet, images):
    with pytest.raises(UserError, match="num_supports -1"):
        T3a(digits_resnet, num_supports=-1)
    headless = copy.deepcopy(digits_resnet)
    headless.net = nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten())
    with pytest.raises(UserError, match="are not the output of a linear layer"):
        T3a(headless)(images[:4])
