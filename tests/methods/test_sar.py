"""SAR: against a plain implementation, and known errors of other implementations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tta_apm_baselines.sar import Sar

from adapting import check_last_stage, plain_copy
from tta_apm.errors import UserError


def plain(net, batches, *, lr, radius=0.05):
    """SAR by the paper's equations, on all batch normalisation except the last stage's (layer4, or
    the last of three stages)."""
    net, params, speed = plain_copy(net)
    results, losses = [], []
    limit = 0.4 * math.log(10)

    def entropies(logits):
        return [-(p * p.log()).sum() for p in logits.softmax(1)]

    def mean(values):
        return sum(values) / len(values)

    for images in batches:
        logits = net(images)
        results.append(logits.detach())
        first = entropies(logits)
        certain = [i for i, h in enumerate(first) if h < limit]
        if not certain:
            continue
        gradients = torch.autograd.grad(mean([first[i] for i in certain]), params)
        length = math.sqrt(sum((g ** 2).sum().item() for g in gradients))
        for p, g in zip(params, gradients):
            p.data += radius * g / length
        second = entropies(net(images))
        loss = mean([second[i] for i in certain if second[i] < limit])
        above = torch.autograd.grad(loss, params)
        losses.append(loss.item())
        for p, g, v, a in zip(params, gradients, speed, above):
            p.data -= radius * g / length
            v.mul_(0.9).add_(a)
            p.data -= lr * v
    return torch.cat(results), losses


def test_it_does_what_a_plain_one_does(exact_resnet, images):
    batches = images.double().split(20)
    method = Sar(exact_resnet, lr=1e-2, recovery=0.0)
    expected, losses = plain(exact_resnet, batches, lr=1e-2)
    result = torch.cat([method(batch) for batch in batches])
    assert (expected - exact_resnet(images.double())).abs().max() > 0.1
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)
    average = losses[0]
    for loss in losses[1:]:
        average = 0.9 * average + 0.1 * loss
    assert method.mean_loss == pytest.approx(average, abs=1e-9)


def test_the_last_stage_stays(digits_resnet, images):
    method = Sar(digits_resnet, lr=1e-2)
    check_last_stage(method, images)


def test_the_mean_loss_is_cleared_when_all_starts_anew(digits_resnet, images):
    """In the authors' code the old mean is kept after a reset, so that each batch resets again."""
    method = Sar(digits_resnet, lr=1e-2, recovery=100.0)
    first = method(images[:50])
    assert method.mean_loss is None and not method.adapted.optimizer.state
    assert torch.equal(method(images[:50]), first)  # has reset itself
    method.recovery = 0.0
    method(images[:50])
    assert method.mean_loss is not None
    assert not torch.equal(method(images[:50]), first)
    method.reset()
    assert method.mean_loss is None
    assert torch.equal(method(images[:50]), first)


def test_the_threshold_scales_with_the_number_of_classes(digits_resnet):
    def starts_anew(loss, num_classes):
        method = Sar(digits_resnet)
        method._recover(loss, num_classes)
        return method.mean_loss is None
    assert starts_anew(0.199, 1000) and not starts_anew(0.201, 1000)
    limit = 0.2 * math.log(10) / math.log(1000)
    assert starts_anew(limit - 1e-3, 10) and not starts_anew(limit + 1e-3, 10)
    assert not starts_anew(0.1, 10)  # below the constant threshold of 0.2, which would reset


def test_without_certain_images_no_step(digits_resnet, images):
    method = Sar(digits_resnet, lr=1e-2)
    method(images[:50])
    method.entropy_margin = 1e-9  # though the optimiser has momentum
    before = copy.deepcopy(method.model.state_dict())
    method(images[50:])
    after = method.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_weights_come_back_from_the_perturbation_where_none_is_certain_there(digits_resnet, images):
    method = Sar(digits_resnet, lr=1e-2, radius=1e6, recovery=0.0)
    before = copy.deepcopy(method.model.state_dict())
    method.entropy_margin = 1e-3
    method(images)
    after = method.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_papers_defaults(digits_resnet):
    method = Sar(digits_resnet)
    group = method.adapted.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (2.5e-4, 0.9, False)
    assert (method.entropy_margin, method.radius, method.recovery, method.momentum) == (
        0.4, 0.05, 0.2, 0.9)


def test_bad_values_are_told(digits_resnet, images, bare):
    with pytest.raises(UserError, match="radius -1"):
        Sar(digits_resnet, radius=-1.0)
    with pytest.raises(ValueError, match="batch of one"):
        Sar(digits_resnet)(images[:1])
    with pytest.raises(UserError, match="no normalisation layers before its last stage"):
        Sar(bare)
