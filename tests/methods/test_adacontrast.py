"""AdaContrast: against a plain one, and the traps of its codes."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import gaussian_blur
from tta_apm_baselines import adacontrast
from tta_apm_baselines.adacontrast import Adacontrast, Ring, strong_view, weak_view

from adapting import adapt_and_reset
from tta_apm.errors import UserError
from tta_apm.toolbox.norm_layers import SingleImage


@pytest.fixture
def early(monkeypatch):
    """Neighbours tell pseudo-labels after 24 images in place of 1,024."""
    monkeypatch.setattr(adacontrast, "FIRST", 24)


def taken_apart(net):
    """Features and logits of a network of timm in float64, by hooks."""
    def run(images):
        seen = []
        hook = net.net.fc.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        logits = net(images)
        hook.remove()
        return seen[0], logits
    return run


def plain(net, batches, *, lr, queue, first, neighbours=10, momentum=0.999, seed=42):
    """AdaContrast by the paper's equations, with loops over images, and the online form's order."""
    model = copy.deepcopy(net).requires_grad_(True)
    slow = copy.deepcopy(net).train()
    fast_parts, slow_parts = taken_apart(model), taken_apart(slow)
    params = list(model.parameters())
    speed = [torch.zeros_like(p) for p in params]
    generator = torch.Generator().manual_seed(seed)
    keys, labels, bank, at, results = None, None, [], 0, []
    for images in batches:
        weak = weak_view(images, generator)
        views = [strong_view(images, generator) for _ in range(2)]
        model.train()
        with torch.no_grad():
            features, logits = fast_parts(weak)
        if len(bank) < first:
            pseudo = [row.argmax().item() for row in logits]
        else:
            pseudo = []
            for f in features:
                near = sorted(bank, key=lambda item: -F.cosine_similarity(f, item[0], dim=0).item())
                pseudo.append(sum(p for _, p in near[:neighbours]).argmax().item())
        features, logits = fast_parts(views[0])
        with torch.no_grad():
            for p, q in zip(slow.parameters(), model.parameters()):
                p.data = momentum * p.data + (1 - momentum) * q.data
            positives = [f / f.norm() for f in slow_parts(views[1])[0]]
        if keys is None:
            drawn = torch.randn(queue, len(positives[0]), generator=generator)
            keys = [f / f.norm() for f in drawn.double()]
            labels = torch.randint(10, (queue,), generator=generator).tolist()
        old = list(keys)
        for key, label in zip(positives, pseudo):
            keys[at], labels[at] = key, label
            at = (at + 1) % queue
        loss = 0
        for f, row, key, label in zip(features, logits, positives, pseudo):
            q = f / f.norm()
            others = [(q @ k / 0.07).exp() for k, other in zip(old, labels) if other != label]
            positive = (q @ key / 0.07).exp()
            loss = loss - (positive / (positive + sum(others))).log() - row.log_softmax(0)[label]
        mean = logits.softmax(1).mean(0)
        loss = loss / len(images) + sum(p * (p + 1e-8).log() for p in mean)
        for p, v, g in zip(params, speed, torch.autograd.grad(loss, params)):
            g = g + 1e-4 * p.data
            v.mul_(0.9).add_(g)
            p.data -= lr * (g + 0.9 * v)
        with torch.no_grad():
            features, logits = slow_parts(weak)
            bank = (bank + list(zip(features, logits.softmax(1))))[-queue:]
            results.append(model.eval()(images))
    return torch.cat(results)


@pytest.mark.slow
@pytest.mark.parametrize("queue", [512, 32], ids=["neighbours", "a full queue"])
def test_it_does_what_a_plain_one_does(exact_resnet, images, queue, early):
    batches = images[:60].double().split(12)
    method = Adacontrast(exact_resnet, lr=0.01, queue=queue)
    result = torch.cat([method(batch) for batch in batches])
    expected = plain(exact_resnet, batches, lr=0.01, queue=queue, first=24)
    assert (result - exact_resnet(images[:60].double())).abs().max() > 0.1
    assert torch.allclose(result, expected, rtol=0, atol=1e-8)


# Pseudo-labels

def test_the_first_images_are_labelled_by_the_network_and_the_others_by_their_neighbours(
        digits_resnet, images, early):
    method = Adacontrast(digits_resnet, queue=64)
    own = method.head.features(images[:4])[0].argmax(-1)
    # A bank in which each image is its own neighbour and of the class after its own.
    features = F.normalize(method.head.features(images[:4])[1], dim=-1)
    method.bank.put(features, F.one_hot((own + 1) % 10, 10).float())
    method.neighbours = 1
    with torch.no_grad():
        assert torch.equal(method._pseudo_labels(images[:4]), own)
        method.num_images = 24
        assert torch.equal(method._pseudo_labels(images[:4]), (own + 1) % 10)
        method.neighbours = 10  # more than there are
        assert method._pseudo_labels(images[:4]).shape == (4,)


# Queue and bank

def test_a_ring_replaces_the_oldest():
    ring = Ring(5)
    for start in (0, 3, 6):
        rows = torch.arange(start, start + 3)
        ring.put(rows, -rows)
    assert sorted(ring.columns[0].tolist()) == [4, 5, 6, 7, 8]
    assert torch.equal(ring.columns[0], -ring.columns[1])
    ring.put(torch.tensor([9]), torch.tensor([-9]))
    assert sorted(ring.columns[0].tolist()) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("before", [0, 2, 5])
def test_of_more_rows_than_there_is_room_for_the_last_stay(before):
    ring = Ring(5)
    ring.put(torch.arange(before))
    ring.put(torch.arange(10, 22))
    assert sorted(ring.columns[0].tolist()) == [17, 18, 19, 20, 21]


def test_a_batch_larger_than_the_queue_is_fine(digits_resnet, images, early):
    method = Adacontrast(digits_resnet, queue=8)
    logits = torch.cat([method(batch) for batch in images[:60].split(20)])
    assert torch.isfinite(logits).all() and len(method.queue.columns[0]) == 8


def test_the_queue_begins_with_random_directions_and_labels(digits_resnet, images):
    method = Adacontrast(digits_resnet, queue=300)
    method(images[:10])
    features, labels = method.queue.columns
    assert torch.allclose(features.norm(dim=-1), torch.ones(300), atol=1e-5)
    assert set(labels[10:].tolist()) == set(range(10))
    assert features[10:].mean(0).norm() < 0.2  # of no direction
    other = Adacontrast(digits_resnet, queue=300, seed=1)
    other(images[:10])
    assert not torch.equal(other.queue.columns[0][10:], features[10:])


def test_features_of_the_same_label_are_no_negatives(digits_resnet, images):
    """By the labels after the keys have entered."""
    method = Adacontrast(digits_resnet, queue=4)
    labels = torch.full((4,), 3)
    method.queue = Ring(4)
    size = method.head.features(images[:4])[1].shape[1]
    method.queue.put(F.normalize(torch.randn(4, size), dim=-1), torch.zeros(4, dtype=torch.long))
    method._set_training(True)
    loss = method._loss(images[:4], images[:4], labels)
    logits = method.head.features(images[:4])[0]
    mean = logits.softmax(-1).mean(0)
    without_contrast = F.cross_entropy(logits, labels) + (mean * (mean + 1e-8).log()).sum()
    assert torch.allclose(loss, without_contrast, atol=1e-5)


# What moves, and how often

def test_the_momentum_copy_follows_once_in_a_step_and_before_it(digits_resnet, images):
    method = Adacontrast(digits_resnet, lr=0.1, momentum=0.5, queue=64)
    source = [p.clone() for p in digits_resnet.parameters()]
    method(images[:10])
    first = [p.detach().clone() for p in method.model.parameters()]
    assert all(map(torch.allclose, method.slow.parameters(), source))
    method(images[10:20])
    assert all(torch.allclose(slow, (p0 + p1) / 2, atol=1e-6)
               for slow, p0, p1 in zip(method.slow.parameters(), source, first))


def test_running_statistics_move_twice_in_a_step_and_not_by_the_prediction(digits_resnet, images):
    """By the weak view and the first strong one; the keys pass through the momentum copy."""
    method = Adacontrast(digits_resnet, queue=64)
    layer = next(m for m in method.model.modules() if isinstance(m, nn.BatchNorm2d))
    before = int(layer.num_batches_tracked)
    method(images[:10])
    assert int(layer.num_batches_tracked) == before + 2
    assert not any(m.training for m in method.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(m.track_running_stats for m in method.slow.modules()
                   if isinstance(m, nn.BatchNorm2d))


def test_the_prediction_is_the_adapted_networks(digits_resnet, images):
    method = Adacontrast(digits_resnet, queue=64)
    logits = method(images[:10])
    assert torch.equal(logits, method.model(images[:10]).detach())
    assert not torch.equal(logits, digits_resnet(images[:10]))


# Views

def test_each_image_has_draws_of_its_own(images):
    same = images[:1].expand(40, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    weak = weak_view(same, generator)
    mirrored = [torch.equal(view, images[0].flip(-1)) for view in weak]
    assert 8 < sum(mirrored) < 32
    assert all(torch.equal(view, images[0]) for view, flipped in zip(weak, mirrored) if not flipped)
    strong = strong_view(torch.rand(1, 3, 32, 32, generator=generator).expand(40, -1, -1, -1),
                         generator)
    assert len({view.sum().item() for view in strong}) > 30
    assert strong.min() >= 0 and strong.max() <= 1


def test_each_image_is_blurred_by_its_own_deviation(images):
    deviations = torch.tensor([0.3, 1.0, 2.0])
    views = adacontrast.blurred(images[:3], deviations)
    for view, image, deviation in zip(views, images, deviations.tolist()):
        assert torch.allclose(view, gaussian_blur(image, [13, 13], [deviation] * 2), atol=1e-5)


@pytest.mark.parametrize("side", [2, 9, 32])
def test_views_of_small_images_too(side):
    generator = torch.Generator().manual_seed(0)
    views = strong_view(torch.rand(20, 3, side, side), generator)
    assert views.shape == (20, 3, side, side) and torch.isfinite(views).all()


def test_views_take_no_global_random_numbers(images):
    before = random.getstate(), torch.get_rng_state()
    strong_view(images[:10], torch.Generator().manual_seed(0))
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


# Reset, defaults, bad values

@pytest.mark.slow
def test_reset_returns_to_the_source(digits_resnet, images, early):
    method = Adacontrast(digits_resnet, lr=0.01, queue=64)
    first = adapt_and_reset(method, images)
    assert method.queue is None and not method.bank.columns and not method.num_images
    assert not method.adapted.optimizer.state
    assert torch.equal(torch.cat([method(batch) for batch in images.split(20)]), first)


def test_the_defaults_of_the_online_form(digits_resnet):
    method = Adacontrast(digits_resnet)
    group = method.adapted.optimizer.param_groups[0]
    assert [group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")] == [
        2e-4, 0.9, 1e-4, True]
    assert (method.momentum, method.temperature, method.queue_size, method.neighbours) == (
        0.999, 0.07, 16384, 10)
    assert adacontrast.FIRST == 1024


def test_bad_values_are_told(digits_resnet, images):
    with pytest.raises(UserError, match="queue 0"):
        Adacontrast(digits_resnet, queue=0)
    with pytest.raises(UserError, match="temperature 0"):
        Adacontrast(digits_resnet, temperature=0.0)
    with pytest.raises(SingleImage, match="adacontrast"):
        Adacontrast(digits_resnet)(images[:1])
    soft = copy.deepcopy(digits_resnet)
    soft.net = nn.Sequential(soft.net, nn.Softmax(-1))
    with pytest.raises(UserError, match="are not the output of a linear layer"):
        Adacontrast(soft)(images[:4])
