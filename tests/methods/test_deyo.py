"""DeYO: against a plain implementation, and known errors of other implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from tta_apm_baselines.deyo import Deyo, shuffle_patches

from adapting import check_last_stage, moved, plain_copy, weights
from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError

FAST = dict(lr=1e-2, plpd=0.2)


def plain(net, batches, *, lr, plpd, seed=42):
    """DeYO image by image, by the paper's equations, on the stages before the last."""
    net, params, speed = plain_copy(net)
    generator = torch.Generator().manual_seed(seed)
    results, counted = [], []
    for images in batches:
        logits = net(images)
        results.append(logits.detach())
        entropies = [-(p * p.log()).sum() for p in logits.softmax(1)]
        certain = [i for i, h in enumerate(entropies) if h < 0.5 * math.log(10)]
        orders = torch.rand(len(certain), 16, generator=generator).argsort(1)
        shuffled = images[certain].clone()
        for i, order in zip(range(len(certain)), orders.tolist()):
            for to, origin in enumerate(order):
                (y, x), (v, u) = divmod(to, 4), divmod(origin, 4)
                shuffled[i, :, 8 * y:8 * y + 8, 8 * x:8 * x + 8] = (
                    images[certain[i], :, 8 * v:8 * v + 8, 8 * u:8 * u + 8])
        with torch.no_grad():
            without_shape = net(shuffled).softmax(1)
        terms = []
        for i, destroyed in zip(certain, without_shape):
            p = logits[i].detach().softmax(0)
            fall = (p[p.argmax()] - destroyed[p.argmax()]).item()
            if fall > plpd:
                h = entropies[i]
                terms.append(h * (math.exp(0.4 * math.log(10) - h.item()) + math.exp(fall)))
        counted.append((len(certain), len(terms)))
        if terms:
            for p, v, g in zip(params, speed,
                               torch.autograd.grad(sum(terms) / len(terms), params)):
                v.mul_(0.9).add_(g)
                p.data -= lr * v
    return torch.cat(results), counted


def test_it_does_what_a_plain_one_does(exact_resnet, images):
    batches = images.double().split(20)
    method = Deyo(exact_resnet, **FAST)
    expected, counted = plain(exact_resnet, batches, **FAST)
    assert all(chosen for _, chosen in counted)
    assert sum(chosen for _, chosen in counted) < sum(certain for certain, _ in counted)
    result = torch.cat([method(batch) for batch in batches])
    assert (result - exact_resnet(images.double())).abs().max() > 0.1
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [2, 4])
def test_patches_are_moved_whole_each_image_in_an_order_of_its_own(count):
    size = 32 // count
    images = torch.arange(count * count, dtype=torch.float32).view(1, 1, count, count)
    images = images.repeat_interleave(size, 2).repeat_interleave(size, 3).expand(6, 3, 32, 32)
    before = images.clone()
    shuffled = shuffle_patches(images, count, torch.Generator().manual_seed(0))
    assert torch.equal(images, before)
    orders = shuffled[:, 0, ::size, ::size].flatten(1)
    whole = orders.unflatten(1, (count, count))
    whole = whole.repeat_interleave(size, 1).repeat_interleave(size, 2)
    assert torch.equal(shuffled, whole[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(orders.sort(1).values, torch.arange(count ** 2).float().expand(6, -1))
    assert len({tuple(order) for order in orders.tolist()}) > 1


def test_images_that_patches_do_not_divide_keep_their_size(images):
    assert shuffle_patches(images[:2, :, :30, :29], 4, torch.Generator()).shape == (2, 3, 30, 29)


def test_a_threshold_that_no_image_exceeds_makes_no_step(digits_resnet, images):
    method = Deyo(digits_resnet, lr=1e-2, plpd=0.2)
    method(images[:50])
    assert moved(method)
    before = weights(method)
    method.plpd = 1.0  # though the optimiser has momentum
    method(images[50:])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(method)))


def test_a_higher_threshold_takes_fewer_images(digits_resnet, images):
    """The threshold matters: a table with one value for all settings shows another method."""
    def counted(plpd):
        method, taken = Deyo(digits_resnet, lr=0.0, plpd=plpd), []
        compute = method._plpd
        method._plpd = lambda *args: taken.append(compute(*args)) or taken[-1]
        for batch in images.split(20):
            method(batch)
        return int((torch.cat(taken) > plpd).sum())
    assert 0 < counted(0.8) < counted(0.2)


def test_one_certain_image_alone_is_no_batch(digits_resnet, images, monkeypatch):
    method = Deyo(digits_resnet, **FAST)
    entropies = torch.full((20,), 2.0)
    entropies[3] = 0.1
    monkeypatch.setattr("tta_apm_baselines.deyo.entropy", lambda logits: entropies)
    method(images[:20])
    assert not moved(method)


def test_single_images_are_adapted_to_where_no_batch_statistics_are(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.GroupNorm(2, 8), nn.ReLU()),
                        nn.Sequential(nn.Flatten(), nn.LayerNorm(8 * 49), nn.Linear(8 * 49, 10)))
    net[1][2].weight.data *= 10  # so that it is certain of some
    method = Deyo(Classifier(net, mean=(0, 0, 0), std=(1, 1, 1)), lr=1e-2, plpd=0.0)
    for image in images[:20].split(1):
        method(image)
    assert moved(method)


def test_reset_returns_to_the_source_and_to_the_first_order(digits_resnet, images):
    method = Deyo(digits_resnet, **FAST)
    first = torch.cat([method(batch) for batch in images.split(20)])
    method.reset()
    assert not moved(method) and not method.adapted.optimizer.state
    assert torch.equal(torch.cat([method(batch) for batch in images.split(20)]), first)


def test_the_last_stage_stays(digits_resnet, images):
    method = Deyo(digits_resnet, **FAST)
    check_last_stage(method, images)


def test_the_papers_defaults(digits_resnet):
    method = Deyo(digits_resnet)
    group = method.adapted.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (2.5e-4, 0.9, False)
    assert (method.entropy_margin, method.weight_margin, method.plpd, method.patches) == (
        0.5, 0.4, 0.3, 4)


def test_bad_values_are_told(digits_resnet, images, bare):
    with pytest.raises(UserError, match="plpd 2"):
        Deyo(digits_resnet, plpd=2.0)
    with pytest.raises(UserError, match="patches 1"):
        Deyo(digits_resnet, patches=1)
    with pytest.raises(ValueError, match="batch of one"):
        Deyo(digits_resnet)(images[:1])
    with pytest.raises(ValueError, match="cannot be cut into 64 patches per side"):
        Deyo(digits_resnet, patches=64)(images[:4])
    with pytest.raises(UserError, match="no normalisation layers before its last stage"):
        Deyo(bare)
