"""CoTTA: against a plain implementation, and known errors of other implementations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from tta_apm_baselines.cotta import Cotta

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError
from tta_apm.toolbox.augment import random_view

VIEWS = dict(confidence=1.0, num_views=3)
NO_VIEWS = dict(confidence=0.0)


def plain(net, batches, *, lr, confidence, restore, num_views=32, symmetric=False, seed=42):
    """CoTTA by the paper's equations, with SGD."""
    source = copy.deepcopy(net).train()  # so that batch normalisation uses the batch's statistics
    student, teacher = copy.deepcopy(source).requires_grad_(True), copy.deepcopy(source)
    params = list(student.parameters())
    speed = [torch.zeros_like(p) for p in params]
    generator = torch.Generator().manual_seed(seed)
    results = []
    for images in batches:
        with torch.no_grad():
            sure = source(images).softmax(1).max(1)[0].mean() >= confidence
            views = [images] if sure else [random_view(images, generator) for _ in range(num_views)]
            taught = sum(teacher(view) for view in views) / len(views)
        logits = student(images)
        loss = 0
        for t, s in zip(taught, logits):
            one_way = -(t.softmax(0) * s.softmax(0).log()).sum()
            other_way = -(s.softmax(0) * t.softmax(0).log()).sum()
            loss = loss + ((one_way + other_way) / 2 if symmetric else one_way) / len(images)
        for p, v, g in zip(params, speed, torch.autograd.grad(loss, params)):
            v.mul_(0.9).add_(g)
            p.data -= lr * v
        for t, p in zip(teacher.parameters(), params):
            t.data = 0.999 * t.data + 0.001 * p.data
        for p, p0 in zip(params, source.parameters()):
            mask = torch.rand(p.shape, generator=generator) < restore
            p.data[mask] = p0.data[mask]
        results.append(taught)
    return torch.cat(results)


@pytest.mark.slow
@pytest.mark.parametrize("keywords", [
    dict(VIEWS, restore=0.01), dict(NO_VIEWS, restore=0.1, symmetric=True)],
    ids=["views", "no views, symmetric"])
def test_it_does_what_a_plain_one_does(exact_resnet, images, keywords):
    batches = images.double().split(20)
    method = Cotta(exact_resnet, lr=1.0, optimizer="sgd", **keywords)
    result = torch.cat([method(batch) for batch in batches])
    expected = plain(exact_resnet, batches, lr=1.0, **keywords)
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)


def test_the_teacher_learns_from_the_student(digits_resnet, images):
    """The teacher's logits are returned; with batch statistics alone they would equal `norm`'s."""
    slow = Cotta(digits_resnet, **NO_VIEWS)
    fast = Cotta(digits_resnet, momentum=0.5, **NO_VIEWS)
    first, second = images.split(50)
    assert torch.equal(slow(first), fast(first))
    assert (slow(second) - fast(second)).abs().max() > 1e-3


@pytest.mark.slow
def test_views_only_where_the_source_network_is_unsure(digits_resnet, images, monkeypatch):
    drawn = []

    def counted(batch, generator):
        drawn.append(len(batch))
        return random_view(batch, generator)
    monkeypatch.setattr("tta_apm_baselines.cotta.random_view", counted)
    method = Cotta(digits_resnet, num_views=2)
    with torch.no_grad():
        certainty = method.anchor(images[:20]).softmax(1).amax(1).mean().item()
    for confidence, views in ((certainty + 0.01, [20, 20]), (certainty - 0.01, [])):
        drawn.clear()
        Cotta(digits_resnet, num_views=2, confidence=confidence)(images[:20])
        assert drawn == views


def test_the_anchor_stays_the_source(digits_resnet, images):
    method = Cotta(digits_resnet, lr=1e-2, **NO_VIEWS)
    before = copy.deepcopy(method.anchor.state_dict())
    method(images)
    after = method.anchor.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Tokens(nn.Module):
    """A network with parameters that are not named weight or bias."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.ones(3))
        self.positions = nn.Parameter(torch.zeros(3))
        self.fc = nn.Linear(3, 10)

    def forward(self, images):
        return self.fc((images.mean((-2, -1)) + self.positions) * self.class_token)


def test_every_parameter_is_restored(images):
    """The authors' code skips a class token and positional embeddings because of their names."""
    torch.manual_seed(0)
    net = Classifier(Tokens(), mean=(0, 0, 0), std=(1, 1, 1))
    for restore in (0.0, 1.0):
        method = Cotta(net, lr=0.1, restore=restore, **NO_VIEWS)
        method(images)
        for name, parameter in method.student.named_parameters():
            same = torch.equal(parameter, method.anchor.get_parameter(name))
            assert same == (restore == 1.0), name


@pytest.mark.slow
def test_restoring_is_of_single_entries(digits_resnet, images):
    def is_source(restore):
        method = Cotta(digits_resnet, restore=restore, **VIEWS)
        method(images)
        return [now == source for now, source
                in zip(method.adapted.parameters, method.adapted.source)]
    moved = torch.cat([~same.flatten() for same in is_source(0.0)])
    restored = is_source(0.3)
    share = torch.cat([same.flatten() for same in restored])[moved].float().mean()
    assert moved.sum() > 1e4 and 0.28 < share < 0.32
    of_the_head = restored[-2]  # [10,128]
    assert len(of_the_head.unique(dim=0)) == 10 and len(of_the_head.unique(dim=1)[0]) > 10


@pytest.mark.slow
def test_reset_makes_student_and_teacher_the_source_again(digits_resnet, images):
    method = Cotta(digits_resnet, lr=1e-2, **VIEWS)
    first = torch.cat([method(batch) for batch in images.split(50)])
    method.reset()
    for model in (method.student, method.teacher):
        for name, value in model.state_dict().items():
            assert torch.equal(value, method.anchor.state_dict()[name])
    assert not method.adapted.optimizer.state
    assert torch.equal(torch.cat([method(batch) for batch in images.split(50)]), first)


def test_the_papers_defaults(digits_resnet):
    method = Cotta(digits_resnet)
    group = method.adapted.optimizer.param_groups[0]
    assert isinstance(method.adapted.optimizer, torch.optim.Adam)
    assert (group["lr"], group["betas"]) == (1e-3, (0.9, 0.999))
    assert (method.momentum, method.confidence, method.restore, method.num_views) == (
        0.999, 0.92, 0.01, 32)
    assert not method.symmetric


def test_bad_values_are_told(digits_resnet, images):
    with pytest.raises(UserError, match="restore 2"):
        Cotta(digits_resnet, restore=2.0)
    with pytest.raises(UserError, match="num_views 0"):
        Cotta(digits_resnet, num_views=0)
    with pytest.raises(ValueError, match="batch of one"):
        Cotta(digits_resnet)(images[:1])
