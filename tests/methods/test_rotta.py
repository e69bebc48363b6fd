"""RoTTA: against a plain implementation, and known errors of other implementations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from tta_apm_baselines.rotta import Memory, RobustBatchNorm, Rotta

from adapting import adapt_and_reset
from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError
from tta_apm.toolbox.augment import random_view

SMALL = dict(memory=16, update_every=16)


class SlowBatchNorm(nn.Module):
    """The paper's Eq. 3 and 4 with a layer of torch, which updates statistics in training mode."""

    def __init__(self, layer, share):
        super().__init__()
        self.layer, self.share = layer, share

    def forward(self, x):
        layer = self.layer
        if self.training:
            mean = (1 - self.share) * layer.running_mean + self.share * x.mean((0, 2, 3))
            variance = ((1 - self.share) * layer.running_var
                        + self.share * x.var((0, 2, 3), correction=0))
            layer.running_mean, layer.running_var = mean.detach(), variance.detach()
        else:
            mean, variance = layer.running_mean, layer.running_var
        x = (x - mean[:, None, None]) / (variance[:, None, None] + layer.eps).sqrt()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]


class PlainMemory:
    """The paper's Algorithm 1, with lists of [image, uncertainty, age] per class."""

    def __init__(self, capacity, num_classes):
        self.capacity = capacity
        self.classes = [[] for _ in range(num_classes)]

    def score(self, uncertainty, age):
        return 1 / (1 + math.exp(-age / self.capacity)) + uncertainty

    def add(self, image, label, uncertainty):
        full = sum(map(len, self.classes)) >= self.capacity
        enters = True
        if len(self.classes[label]) >= self.capacity / len(self.classes):
            rivals = [label]
        elif full:
            most = max(map(len, self.classes))
            rivals = [k for k, items in enumerate(self.classes) if len(items) == most]
        else:
            rivals = []
        if rivals:
            score, k, i = max((self.score(*item[1:]), k, i) for k in rivals
                              for i, item in enumerate(self.classes[k]))
            enters = score > self.score(uncertainty, 0)
            if enters:
                self.classes[k].pop(i)
        if enters:
            self.classes[label].append([image, uncertainty, 0])
        for item in sum(self.classes, []):
            item[2] += 1


def plain(net, batches, *, lr, memory, update_every, statistics=0.05, momentum=0.999, seed=42):
    """RoTTA image by image, by the paper's equations, with SGD."""
    student = copy.deepcopy(net)
    params = []
    for module in list(student.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SlowBatchNorm(child, statistics))
                params += [child.weight.requires_grad_(), child.bias.requires_grad_()]
    teacher = copy.deepcopy(student).requires_grad_(False)
    speed = [torch.zeros_like(p) for p in params]
    bank, generator, count, results = PlainMemory(memory, 10), torch.Generator(), 0, []
    generator.manual_seed(seed)
    for images in batches:
        with torch.no_grad():
            predictions = teacher.eval()(images)
        results.append(predictions)
        for image, p in zip(images, predictions.softmax(1)):
            uncertainty = -(p * p.log()).sum().item() / math.log(10)
            bank.add(image, p.argmax().item(), uncertainty)
            count += 1
            if count % update_every:
                continue
            items = sum(bank.classes, [])
            content = torch.stack([item[0] for item in items])
            targets = teacher.train()(content).softmax(1)
            logits = student.train()(random_view(content, generator))
            loss = sum(-(t * s.log_softmax(0)).sum() / (1 + math.exp(item[2] / memory))
                       for t, s, item in zip(targets, logits, items)) / len(items)
            for p, v, g in zip(params, speed, torch.autograd.grad(loss, params)):
                v.mul_(0.9).add_(g)
                p.data -= lr * v
            for t, s in zip(teacher.parameters(), student.parameters()):
                t.data = momentum * t.data + (1 - momentum) * s.data
    return torch.cat(results)


@pytest.mark.slow
def test_it_does_what_a_plain_one_does(exact_resnet, images):
    batches = images.double().split(10)
    keywords = dict(lr=0.1, momentum=0.8, **SMALL)
    method = Rotta(exact_resnet, optimizer="sgd", **keywords)
    result = torch.cat([method(batch) for batch in batches])
    expected = plain(exact_resnet, batches, **keywords)
    assert (result - exact_resnet(images.double())).abs().max() > 0.1
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_float32_and_single_images_are_fine(digits_resnet, images):
    """In online-tta the update fails without mixed precision, so always on a CPU."""
    together, single = (Rotta(digits_resnet, **SMALL) for _ in range(2))
    for part in images[:48].split(16):
        first = together(part)
        alone = torch.cat([single(image) for image in part.split(1)])
        # Updates count images, so that both come after the same ones.
        assert torch.allclose(first, alone, atol=1e-4)
    assert first.dtype == torch.float32
    assert any(not torch.equal(now, source) for now, source
               in zip(single.adapted.parameters, single.adapted.source))


def test_updates_come_after_so_many_images_whatever_the_batch(digits_resnet, images, monkeypatch):
    updates = []
    monkeypatch.setattr(Rotta, "_update", lambda self: updates.append(self.num_images))
    method = Rotta(digits_resnet, **SMALL)
    for part in images.split([7, 40, 1, 52]):
        method(part)
    assert updates == [16, 32, 48, 64, 80, 96]


def test_statistics_move_slowly_and_at_updates_only(digits_resnet, images):
    method = Rotta(digits_resnet, **SMALL)

    def statistics():
        return {name: value.clone() for name, value in method.teacher.named_buffers()
                if name.endswith((".mean", ".variance"))}
    source = statistics()
    method(images[:15])
    assert all(torch.equal(value, source[name]) for name, value in statistics().items())
    method(images[15:16])
    moved = [not torch.equal(value, source[name]) for name, value in statistics().items()]
    assert moved and all(moved)
    before = torch.cat([value.flatten() for value in source.values()])
    after = torch.cat([value.flatten() for value in statistics().values()])
    assert (after - before).norm() < 0.2 * before.norm()


def test_without_batch_normalisation_memory_and_teacher_remain(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8 * 49, 10))
    method = Rotta(Classifier(net, mean=(0, 0, 0), std=(1, 1, 1)), momentum=0.5, **SMALL)
    first = method(images[:16])
    assert not torch.equal(method(images[:16]), first)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(6), BatchNormAct2d(6)], ids=["torch", "timm"])
def test_what_a_layer_does_after_normalising_is_kept(layer):
    """timm's layers hold the activation, too."""
    inputs = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    layer.eval()
    assert torch.allclose(RobustBatchNorm(layer, 0.05)(inputs), layer(inputs), atol=1e-5)


def test_the_memory_is_balanced_and_holds_no_more_than_its_capacity():
    memory = Memory(8, 1.0, 1.0)
    for step in range(40):  # a stream of one class, then of a second
        memory.add(torch.zeros(1), label=step // 20, uncertainty=0.5, num_classes=2)
    labels = [item.label for item in memory.items]
    assert sorted(labels) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("uncertainty, enters", [(0.1, True), (0.9, False)])
def test_uncertain_images_do_not_enter_a_full_memory(uncertainty, enters):
    memory = Memory(2, 1.0, 1.0)
    for value in (0.5, 0.4):
        memory.add(torch.tensor(value), label=0, uncertainty=value, num_classes=1)
    memory.add(torch.tensor(uncertainty), label=0, uncertainty=uncertainty, num_classes=1)
    kept = [round(item.image.item(), 1) for item in memory.items]
    assert kept == ([0.4, uncertainty] if enters else [0.5, 0.4])


def test_old_images_leave_the_memory():
    memory = Memory(4, 1.0, 1.0)
    for index in range(30):
        memory.add(torch.tensor(index), label=0, uncertainty=0.5, num_classes=1)
    assert [item.image.item() for item in memory.items] == [26, 27, 28, 29]


def test_the_memory_keeps_images_and_not_the_batches_they_came_in(digits_resnet, images):
    method = Rotta(digits_resnet, **SMALL)
    method(images[:10])
    item = method.memory.items[0]
    assert item.image.untyped_storage().nbytes() == item.image.nbytes


@pytest.mark.slow
def test_reset_returns_to_the_source(digits_resnet, images):
    method = Rotta(digits_resnet, **SMALL)
    first = adapt_and_reset(method, images)
    assert not method.memory.items and not method.adapted.optimizer.state
    assert torch.equal(torch.cat([method(batch) for batch in images.split(20)]), first)


def test_the_papers_defaults(digits_resnet):
    method = Rotta(digits_resnet)
    group = method.adapted.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-3, (0.9, 0.999))
    assert (method.momentum, method.memory_size, method.update_every, method.lambdas) == (
        0.999, 64, 64, (1.0, 1.0))
    assert {module.share for module in method.student.modules() if hasattr(module, "share")} == {
        0.05}


def test_bad_values_are_told(digits_resnet, bare):
    with pytest.raises(UserError, match="statistics 2"):
        Rotta(digits_resnet, statistics=2.0)
    with pytest.raises(UserError, match="memory 0"):
        Rotta(digits_resnet, memory=0)
    with pytest.raises(UserError, match="no normalisation layers"):
        Rotta(bare)
