"""MEMO: facts of its paper and code."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tta_apm_baselines.memo import Memo

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError
from tta_apm.toolbox.entropy import entropy, marginal_entropy

SOURCE_STATISTICS = 1e12  # so many pseudo-samples that the image's statistics have no weight


@pytest.fixture
def group_norm():
    """A small classifier whose normalisation does not depend on the batch."""
    torch.manual_seed(0)
    return classifier(nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 8 * 8, 10)))


def classifier(net):
    return Classifier(net, image_size=None, mean=(0.5,) * 3, std=(0.5,) * 3, name="small",
                      weights="random")


def test_identical_views_give_the_plain_entropy():
    logits = torch.randn(10) * 3
    assert torch.allclose(marginal_entropy(logits.expand(32, 10)), entropy(logits[None]),
                          atol=1e-6)


def test_the_loss_is_that_of_the_mean_prediction():
    sure = 50 * torch.eye(2)
    assert torch.allclose(marginal_entropy(sure), torch.tensor(2.0).log())
    assert torch.allclose(marginal_entropy(sure[:1]), torch.tensor(0.0))
    logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(0)) * 5
    mean = logits.softmax(-1).mean(0)
    assert torch.allclose(marginal_entropy(logits), -(mean * mean.log()).sum(), atol=1e-6)
    assert marginal_entropy(logits) <= math.log(10)
    assert torch.allclose(marginal_entropy(torch.zeros(32, 10)), torch.tensor(10.0).log())


def test_a_step_changes_every_weight_and_lowers_the_loss(digits_resnet, images):
    method = Memo(digits_resnet, num_views=8, lr=1e-4)
    views = method.views(images[:2])
    adapted = method.adapted(views)
    for name, weight in method.source().items():
        for of_image in adapted[name]:
            assert not torch.equal(of_image, weight), name
    for index in range(2):
        weights = {name: weight[index] for name, weight in adapted.items()}
        assert method.loss(weights, views[index]) < method.loss(method.source(), views[index])


def test_the_step_is_that_of_one_image_alone(group_norm, images):
    """Against an implementation for one image with autograd, with both optimisers."""
    for name, optimizer, lr in (("sgd", torch.optim.SGD, 5e-3),
                                ("adamw", torch.optim.AdamW, 1e-3)):
        method = Memo(group_norm, num_views=8, optimizer=name, lr=lr)
        logits = method(images[:3])
        for index in range(3):
            model = copy.deepcopy(group_norm).requires_grad_(True)
            update = optimizer(model.parameters(), lr=lr)
            (views,) = method.views(images[index:index + 1])
            marginal_entropy(model(views)).backward()
            update.step()
            expected = model(images[index:index + 1])[0]
            assert torch.allclose(logits[index], expected, atol=1e-4)


def test_the_authors_optimisers(group_norm):
    leaf = [torch.zeros(1, requires_grad=True)]
    sgd = Memo(group_norm).make_optimizer(leaf).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (5e-3, 0, 0)
    adamw = Memo(group_norm, optimizer="adamw", lr=1e-5).make_optimizer(leaf).param_groups[0]
    assert (adamw["lr"], adamw["weight_decay"]) == (1e-5, 0.01)


def test_nothing_survives_an_image(digits_resnet, images):
    method = Memo(digits_resnet, num_views=4)
    before = copy.deepcopy(method.model.state_dict())
    first = method(images[:4])
    after = method.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    method(images[4:8])
    assert torch.equal(method(images[:4]), first)


@pytest.mark.slow
def test_group_normalisation_gives_the_same_logits_alone_and_in_a_batch(group_norm, images):
    method = Memo(group_norm, num_views=8)
    together = method(images[:32])
    alone = torch.cat([method(image[None]) for image in images[:32]])
    assert torch.allclose(alone, together, atol=1e-4)


def test_logits_are_those_after_the_step(digits_resnet, images):
    method = Memo(digits_resnet, num_views=4)
    before = torch.cat([method.run(method.source(), image[None]) for image in images[:4]])
    assert not torch.allclose(method(images[:4]), before, atol=1e-2)


@pytest.mark.slow
def test_without_a_step_and_with_the_source_s_statistics_it_is_the_source(digits_resnet, images):
    method = Memo(digits_resnet, num_views=4, lr=0.0, pseudo_count=SOURCE_STATISTICS)
    expected = digits_resnet(images[:8])
    assert torch.allclose(method(images[:8]), expected, atol=1e-4)
    mixed = Memo(digits_resnet, num_views=4, lr=0.0)(images[:8])
    assert not torch.allclose(mixed, expected, atol=1e-2)


def test_statistics_are_sixteen_seventeenths_of_the_source():
    layer = nn.BatchNorm2d(2, affine=False, eps=0.0)
    layer.running_mean = torch.tensor([1.0, 0.0])
    layer.running_var = torch.tensor([4.0, 1.0])
    method = Memo(classifier(nn.Sequential(nn.Conv2d(3, 2, 1), layer, nn.Flatten())))
    images = torch.rand(5, 3, 2, 2)
    inputs = method.model.net[0](images * 2 - 1)
    mean = (16 * layer.running_mean + inputs.mean((0, 2, 3))) / 17
    variance = (16 * layer.running_var + inputs.var((0, 2, 3), correction=0)) / 17
    expected = (inputs - mean.view(1, 2, 1, 1)) / variance.view(1, 2, 1, 1).sqrt()
    assert torch.allclose(method.run(method.source(), images), expected.flatten(1), atol=1e-5)


def test_no_gradient_flows_through_the_statistics():
    torch.manual_seed(0)
    method = Memo(classifier(nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))),
        pseudo_count=0.0, lr=1.0)
    views = torch.rand(1, 6, 3, 4, 4)
    convolution, _, _, linear = copy.deepcopy(method.model.net).requires_grad_(True)
    inputs = convolution(views[0] * 2 - 1)
    variance, mean = torch.var_mean(inputs.detach(), (0, 2, 3), correction=0)
    marginal_entropy(linear(F.batch_norm(inputs, mean, variance).flatten(1))).backward()
    adapted = method.adapted(views)["net.0.weight"][0]
    assert torch.allclose(adapted, convolution.weight - convolution.weight.grad, atol=1e-6)


def test_views_are_what_was_asked_for(digits_resnet, images):
    views = Memo(digits_resnet, num_views=5).views(images[:2])
    assert views.shape == (2, 5, 3, 32, 32)
    assert not torch.equal(Memo(digits_resnet, num_views=5, seed=7).views(images[:2]), views)
    for setting in (dict(flip=False), dict(crop="resize")):
        assert not torch.equal(Memo(digits_resnet, num_views=5, **setting).views(images[:2]), views)
    large = torch.rand(1, 3, 48, 40)  # cropped at its own size, or to what the network takes
    assert Memo(digits_resnet, num_views=2).views(large).shape == (1, 2, 3, 48, 40)
    assert Memo(digits_resnet, num_views=2, crop="resize").views(large).shape == (1, 2, 3, 32, 32)


def test_bad_values_are_told(digits_resnet):
    with pytest.raises(UserError, match="num_views 0"):
        Memo(digits_resnet, num_views=0)
    for count in (-1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=f"pseudo_count {count}"):
            Memo(digits_resnet, pseudo_count=count)
    with pytest.raises(UserError, match="did you mean 'sgd'"):
        Memo(digits_resnet, optimizer="sdg")
    with pytest.raises(UserError, match="unknown crop 'padd'"):
        Memo(digits_resnet, crop="padd")
