"""SharedWork: an answer is handed on only where it would be the same to the bit."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from tta_apm.backbones.classifiers import Classifier
from tta_apm.bench.shared_work import SharedWork

CPU = torch.device("cpu")


# Of each network that was asked, with the number of images; in no network, whose state it is not.
CALLS: list[int] = []


class Net(nn.Module):
    """Counts its calls; may take its time, draw, or keep something in mind."""

    def __init__(self):
        super().__init__()
        CALLS.clear()
        self.head = nn.Linear(12, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.draws = self.remembers = False

    def forward(self, images):
        CALLS.append(len(images))
        time.sleep(0.1)
        if self.remembers:
            self.seen += 1
        logits = self.head(images.flatten(1))
        return logits + torch.rand(()) if self.draws else logits


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def backbone(net):
    return Classifier(net, mean=[0.0] * 3, std=[1.0] * 3)


@pytest.fixture
def shared(backbone):
    """With a batch under way, whose images are in shared.images."""
    shared = SharedWork([backbone], CPU)
    shared.begin(torch.rand(6, 3, 2, 2))
    return shared


def ask(shared, function, *arguments):
    """A turn in which a method calls `function`; gives its result and what it is charged."""
    with torch.no_grad(), shared.call() as turn:
        return function(*arguments), turn


@pytest.mark.slow
def test_who_asks_the_same_is_answered_the_same(shared, backbone):
    images = shared.images.detach()
    first, _ = ask(shared, backbone, images)
    second, _ = ask(shared, backbone, shared.images.detach())
    assert torch.equal(first, second) and CALLS == [6]
    part, _ = ask(shared, backbone, images[2:5])
    again, _ = ask(shared, lambda: backbone(images[:5][2:]))
    assert torch.equal(part, again) and CALLS == [6, 3]
    with torch.no_grad():
        assert torch.equal(first, backbone(images)) and CALLS == [6, 3, 6]  # in nobody's turn


def test_nobody_writes_to_anothers_answer(shared, backbone):
    first, _ = ask(shared, backbone, shared.images)
    expected = first.clone()
    first.zero_()
    second, _ = ask(shared, backbone, shared.images)
    assert torch.equal(second, expected)
    second.zero_()
    assert torch.equal(ask(shared, backbone, shared.images)[0], expected)


def test_everyone_is_charged_the_time_that_an_answer_took(shared, backbone):
    for _ in range(3):
        begin = time.perf_counter()
        _, turn = ask(shared, backbone, shared.images)
        inside = time.perf_counter() - begin
        assert inside + turn.seconds == pytest.approx(0.1, abs=0.04)
    assert CALLS == [6]


@pytest.mark.slow
def test_the_next_batch_is_another_question(shared, backbone):
    first, _ = ask(shared, backbone, shared.images)
    shared.begin(torch.rand(6, 3, 2, 2))
    second, _ = ask(shared, backbone, shared.images)
    assert CALLS == [6, 6] and not torch.equal(first, second)
    shared.end()
    ask(shared, backbone, torch.rand(6, 3, 2, 2))
    assert CALLS == [6, 6, 6]


def write(images):
    images.add_(0.5)
    return images


def perturbed(backbone):
    """As zeroth-order methods do it, past torch's count of writes, and undo it."""
    def call(images):
        weight = backbone.net.head.weight
        kept = weight.data.clone()
        weight.data.mul_(1.5)
        logits = backbone(images)
        weight.data.copy_(kept)
        return logits
    return call


def watched(backbone):
    """With a hook that looks at a layer, and is taken off again."""
    def call(images):
        seen = []
        hook = backbone.net.head.register_forward_hook(lambda *args: seen.append(args[-1]))
        logits = backbone(images)
        hook.remove()
        assert len(seen) == 1
        return logits
    return call


def without_head(backbone):
    def call(images):
        kept, backbone.net.head = backbone.net.head, nn.Flatten()
        logits = backbone(images)
        backbone.net.head = kept
        return logits
    return call


def in_training(backbone):
    def call(images):
        backbone.net.train()
        logits = backbone(images)
        backbone.net.eval()
        return logits
    return call


def rounded(backbone):
    def call(images):
        with torch.autocast("cpu", torch.bfloat16):
            return backbone(images)
    return call


OTHER_QUESTIONS = {
    "written to": lambda backbone: lambda images: backbone(write(images)),
    "other images": lambda backbone: lambda images: backbone(images.clone()),
    "images that take a gradient": lambda backbone: lambda images: backbone(
        images.detach().requires_grad_()),
    "a copy of the backbone": copy.deepcopy,
    "the network inside": lambda backbone: lambda images: backbone.net(images),
    "weights changed and back": perturbed,
    "a hook": watched,
    "another head": without_head,
    "training mode": in_training,
    "autocast": rounded,
    "vmap": lambda backbone: lambda images: torch.func.vmap(backbone)(images[:, None])[:, 0],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_QUESTIONS)
def test_another_question_is_answered_anew_and_its_answer_goes_to_nobody(shared, backbone, name):
    kept = shared.images.clone()
    expected, _ = ask(shared, backbone, shared.images)
    call = OTHER_QUESTIONS[name](backbone)
    ask(shared, call, shared.images.detach())
    assert len(CALLS) == 2
    if name == "written to":  # as the pass does when it finds out
        shared.images.copy_(kept)
    ask(shared, call, shared.images.detach())
    assert len(CALLS) == 3
    if name == "written to":
        shared.images.copy_(kept)
    assert torch.equal(ask(shared, backbone, shared.images)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["draws", "remembers"])
def test_a_network_that_is_no_function_of_its_images_answers_each_time(backbone, net, kind):
    setattr(net, kind, True)
    shared = SharedWork([backbone], CPU)
    shared.begin(torch.rand(6, 3, 2, 2))
    for _ in range(3):
        ask(shared, backbone, shared.images)
    assert CALLS == [6, 6, 6]


def test_a_changed_backbone_is_asked_each_time(shared, backbone, net):
    with torch.no_grad():
        net.head.weight.data.mul_(2)
    for _ in range(2):
        ask(shared, backbone, shared.images)
    assert CALLS == [6, 6]
