"""UDA-SS: against a plain implementation, and special cases."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tta_apm_baselines.uda_ss import UdaSs, turn

from tta_apm.errors import UserError
from tta_apm.toolbox.domain_images import TensorImages
from tta_apm.toolbox.views import pad_crop_views


class Few:
    """The first labelled source images, in float64, with a record of the requested positions."""

    def __init__(self, source, count=26):
        self.images, self.labels = source.batch(torch.arange(count))
        self.asked = []

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        self.asked.append(indices)
        return self.images[indices].double(), self.labels[indices]


@pytest.fixture
def few(digits_source):
    return Few(digits_source)


@pytest.fixture
def make(exact_resnet, few):
    def make(**values):
        return UdaSs(exact_resnet, source=few, **{**dict(
            epochs=2, milestones=(1,), lr=0.05, batch_size=8, flip=False, digits=True), **values})
    return make


def plain(backbone, weights, source, images, *, epochs, milestones, lr, batch_size, flip, digits,
          seed=42):
    """The authors' training with alternating updates; logits of all images after the last epoch."""
    net = copy.deepcopy(backbone.net).requires_grad_(True).train()
    net.load_state_dict(weights)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        turner = nn.Linear(128, 4).double()
    trunk = [value for name, value in net.named_parameters() if not name.startswith("fc.")]
    velocity = [{}, {}]

    def update(number, loss, parameters, rate):
        for index, (value, slope) in enumerate(zip(
                parameters, torch.autograd.grad(loss, parameters))):
            slope = slope + 5e-4 * value.detach()
            before = velocity[number].get(index)
            velocity[number][index] = slope if before is None else 0.9 * before + slope
            value.data -= rate * velocity[number][index]

    def shuffled(count):
        while True:
            yield from torch.randperm(count, generator=generator).split(batch_size // 2)

    def augmented(batch):
        return pad_crop_views(batch, 1, [generator] * len(batch), flip=flip)[:, 0]

    of_source, of_domain = shuffled(len(source)), shuffled(len(images))
    for epoch in range(epochs):
        rate = lr * 0.1 ** sum(epoch >= milestone for milestone in milestones)
        for part in torch.randperm(len(source), generator=generator).split(batch_size):
            if len(part) == 1:
                continue
            both = torch.cat([source.images[next(of_source)].double(), images[next(of_domain)]])
            turns = torch.randint(4, (len(both),), generator=generator)
            both = torch.stack([turned(image, int(number), digits)
                                for image, number in zip(augmented(both), turns)])
            features = net.forward_head(net.forward_features(backbone.prepare(both)),
                                        pre_logits=True)
            update(0, F.cross_entropy(turner(features), turns), [*trunk, *turner.parameters()],
                   rate)
            labelled = backbone.prepare(augmented(source.images[part].double()))
            update(1, F.cross_entropy(net(labelled), source.labels[part]),
                   [*trunk, *net.fc.parameters()], rate)
    return net.eval()(backbone.prepare(images)).detach()


def turned(image, number, digits):
    if digits and number == 1:
        return image.transpose(1, 2)
    if digits and number == 2:
        return image.flip(2)
    return image.rot90(number, (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, dict(digits=False, flip=True, batch_size=5, lr=0.01)])
def test_it_does_what_a_plain_one_does(make, exact_resnet, few, images, values):
    images = images.double()[:10]
    method = make(**values)
    start = copy.deepcopy(method.model.net.state_dict())
    method.prepare(TensorImages(images))
    expected = plain(exact_resnet, start, few, images, **{**dict(
        epochs=2, milestones=(1,), lr=0.05, batch_size=8, flip=False, digits=True), **values})
    assert torch.allclose(method(images), expected, rtol=0, atol=1e-8)


def test_digits_are_transposed_and_mirrored_and_turned_the_other_way_round():
    image = torch.arange(27.0).view(1, 3, 3, 3)
    found = [turn(image, torch.tensor([number]), digits=True)[0, 0] for number in range(4)]
    for shown, expected in zip(found, [[0, 1, 2], [0, 3, 6], [2, 1, 0], [6, 3, 0]]):
        assert shown[0].tolist() == expected
    upside_down = turn(image, torch.tensor([2]), digits=False)[0, 0]
    assert upside_down[0].tolist() == [8, 7, 6]


def test_a_domain_trains_a_network_of_its_own_from_the_same_start(make, images):
    method = make(epochs=1)
    first, second = TensorImages(images.double()[:12]), TensorImages(images.double()[50:62])
    untrained = method(first.images)
    method.prepare(first)
    after_first = method(first.images)
    method.reset()
    assert torch.equal(method(first.images), untrained)
    method.prepare(second)
    assert not torch.equal(method(first.images), after_first)
    method.reset()
    method.prepare(first)
    assert torch.equal(method(first.images), after_first)


def test_the_backbone_s_weights_do_not_count_and_the_seed_does(make, exact_resnet, few, images):
    images = images.double()[:8]
    other = copy.deepcopy(exact_resnet)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert torch.equal(UdaSs(other, source=few)(images), make()(images))
    assert not torch.equal(make(seed=1)(images), make()(images))
    assert not torch.equal(exact_resnet(images), make()(images))


def test_every_look_is_turned_afresh_and_half_of_a_batch_is_source(make, few, images, monkeypatch):
    method, seen = make(epochs=2), []
    monkeypatch.setattr("tta_apm_baselines.uda_ss.rotate",
                        lambda images, turns: (seen.append(turns), images.clone())[1])
    asked = []
    domain = TensorImages(images.double()[:10])
    monkeypatch.setattr(domain, "batch", lambda indices: (
        asked.append(indices), domain.images[indices])[1])
    method.prepare(domain)
    assert {len(turns) for turns in seen} == {4 + 4, 4 + 2, 2 + 4}  # last parts of 26 and of 10
    assert len({tuple(turns.tolist()) for turns in seen}) > 1
    looks = torch.cat(asked[1:])  # the first finds the head
    assert looks[:10].sort().values.tolist() == list(range(10))
    assert looks[10:20].sort().values.tolist() == list(range(10))
    assert not torch.equal(looks[:10], looks[10:20])


def test_it_says_what_it_needs(exact_resnet, digits_source):
    with pytest.raises(UserError, match="labelled source images, and the data set has none"):
        UdaSs(exact_resnet)
    with pytest.raises(UserError, match="batch_size 1"):
        UdaSs(exact_resnet, source=digits_source, batch_size=1)
    own = copy.deepcopy(exact_resnet)
    own.net.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="nothing tells how the parameter net.scale"):
        UdaSs(own, source=digits_source)
