"""NOTE: against a plain one, and the traps of its code."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from tta_apm_baselines.note import InstanceAwareBatchNorm, Memory, Note

from adapting import adapt_and_reset
from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError

SMALL = dict(memory=16, update_every=16)


def shrunk(value, limit):
    """The soft threshold of one number."""
    return max(value - limit, 0) - max(-value - limit, 0)


class PlainLayer(nn.Module):
    """The paper's Eq. 3 to 6 around a layer of torch, image by image and channel by channel."""

    def __init__(self, layer, k):
        super().__init__()
        self.layer, self.k = layer, k

    def forward(self, x):
        layer, size = self.layer, x[0, 0].numel()
        if layer.training:
            layer(x)  # moves its running statistics
            means, variances = x.mean((0, 2, 3)), x.var((0, 2, 3))
        else:
            means, variances = layer.running_mean, layer.running_var
        images = []
        for image in x:
            channels = []
            for c, values in enumerate(image):
                mean, variance = means[c], variances[c]
                if size > 1:
                    error = self.k * ((variance + layer.eps) / size).sqrt()
                    error2 = self.k * (variance + layer.eps) * (2 / (size - 1)) ** 0.5
                    mean = mean + shrunk(values.mean() - mean, error)
                    variance = max(variance + shrunk(values.var() - variance, error2), 0 * variance)
                normal = (values - mean) / (variance + layer.eps).sqrt()
                channels.append(normal * layer.weight[c] + layer.bias[c])
            images.append(torch.stack(channels))
        return torch.stack(images)


class PlainMemory:
    """The paper's Algorithm 1, with a list of images for each class."""

    def __init__(self, capacity, num_classes, seed):
        self.capacity, self.draw = capacity, random.Random(seed)
        self.classes = [[] for _ in range(num_classes)]
        self.seen = [0] * num_classes

    def add(self, image, c):
        self.seen[c] += 1
        sizes = [len(images) for images in self.classes]
        if sum(sizes) == self.capacity:
            largest = [k for k, size in enumerate(sizes) if size == max(sizes)]
            leaves = c
            if c not in largest:
                leaves = self.draw.choice(largest)
            elif self.draw.uniform(0, 1) > sizes[c] / self.seen[c]:
                return
            self.classes[leaves].pop(self.draw.randrange(sizes[leaves]))
        self.classes[c].append(image)


def plain(net, images, *, lr, memory, update_every, iabn, k=4.0, seed=42):
    """NOTE image by image, by the paper's equations, with SGD."""
    net = copy.deepcopy(net).requires_grad_(False)
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 0.01
    for module in list(net.modules()) if iabn else []:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d) and not isinstance(module, PlainLayer):
                setattr(module, name, PlainLayer(child, k))
    params = [p.requires_grad_(True) for layer in layers for p in layer.parameters()]
    speed = [torch.zeros_like(p) for p in params]
    bank, results = PlainMemory(memory, 10, seed), []
    for count, image in enumerate(images, 1):
        logits = net(image[None]).detach()
        results.append(logits)
        bank.add(image, logits.argmax().item())
        if count % update_every:
            continue
        for layer in layers:
            layer.train()
        ps = net(torch.stack(sum(bank.classes, []))).softmax(1)
        loss = -(ps * ps.log()).sum() / len(ps)
        for p, v, g in zip(params, speed, torch.autograd.grad(loss, params)):
            v.mul_(0.9).add_(g)
            p.data -= lr * v
        for layer in layers:
            layer.eval()
    return torch.cat(results)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(6), BatchNormAct2d(6)], ids=["torch", "timm"])
def test_what_a_layer_does_after_normalising_is_kept(layer):
    """timm's layers hold the activation, too."""
    inputs = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    layer.eval()
    assert torch.allclose(InstanceAwareBatchNorm(layer, 1e6)(inputs), layer(inputs), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("iabn, count", [(True, 24), (False, 60)])
def test_it_does_what_a_plain_one_does(exact_resnet, images, iabn, count):
    stream = images[:count].double()
    keywords = dict(lr=0.1, iabn=iabn, memory=6, update_every=8)
    method = Note(exact_resnet, optimizer="sgd", **keywords)
    result = torch.cat([method(batch) for batch in stream.split(10)])
    assert (result - exact_resnet(stream)).abs().max() > 0.1
    assert torch.allclose(result, plain(exact_resnet, stream, **keywords), rtol=0, atol=1e-9)


# Instance-aware batch normalisation

def layer_of(channels, **statistics):
    layer = nn.BatchNorm2d(channels).eval()
    for name, value in statistics.items():
        getattr(layer, name).copy_(value)
    return layer


def test_what_differs_by_chance_only_is_normalised_as_ever():
    inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    layer = layer_of(3)
    assert torch.allclose(InstanceAwareBatchNorm(layer, 100.0)(inputs), layer(inputs), atol=1e-6)
    shifted = InstanceAwareBatchNorm(layer, 4.0)(inputs + 5)
    assert (shifted.mean((2, 3)) < 1).all() and (layer(inputs + 5).mean((2, 3)) > 4).all()


def test_without_a_margin_it_is_instance_normalisation():
    inputs = 3 + torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = InstanceAwareBatchNorm(layer_of(3), 0.0)(inputs)
    variance, mean = torch.var_mean(inputs, (2, 3), keepdim=True)
    assert torch.allclose(outputs, (inputs - mean) / (variance + 1e-5).sqrt(), atol=1e-5)


def test_a_map_of_one_position_has_no_statistics_of_its_own():
    """Their skip_thres."""
    inputs = 9 + torch.rand(4, 3, 1, 1)
    layer = layer_of(3)
    assert torch.allclose(InstanceAwareBatchNorm(layer, 0.0)(inputs), layer(inputs))
    flat = nn.BatchNorm1d(3).eval()
    assert torch.allclose(InstanceAwareBatchNorm(flat, 0.0)(inputs.flatten(1)),
                          flat(inputs.flatten(1)))


def test_a_variance_never_falls_below_zero():
    inputs = torch.zeros(2, 3, 2, 2)
    assert torch.isfinite(InstanceAwareBatchNorm(layer_of(3), 0.0)(inputs)).all()


def test_layers_change_a_network_that_was_trained_without_them(digits_resnet, images):
    """Hence a row of its own that does not adapt."""
    assert torch.equal(Note(digits_resnet, steps=0, iabn=False)(images), digits_resnet(images))
    assert not torch.allclose(Note(digits_resnet, steps=0)(images), digits_resnet(images), atol=0.1)


def test_without_steps_nothing_is_adapted(digits_resnet, images):
    method = Note(digits_resnet, steps=0, **SMALL)
    first = method(images[:32])
    assert torch.equal(method(images[:32]), first) and method.did["updated"] == 0


# Updates

@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size(exact_resnet, images):
    stream, results = images.double(), []
    for sizes in ([100], [7, 40, 1, 52], [20] * 5):
        method = Note(exact_resnet, lr=0.01, **SMALL)
        results.append(torch.cat([method(part) for part in stream.split(sizes)]))
    assert all(torch.allclose(result, results[0], rtol=0, atol=1e-9) for result in results)


def test_updates_come_after_so_many_images_and_none_for_the_rest(digits_resnet, images,
                                                                 monkeypatch):
    updates = []
    monkeypatch.setattr(Note, "_update", lambda self: updates.append(self.num_images))
    method = Note(digits_resnet, **SMALL)
    for part in images.split([7, 40, 1, 52]):
        method(part)
    assert updates == [16, 32, 48, 64, 80, 96]


def test_predictions_are_from_before_the_update_and_use_its_statistics_after(digits_resnet, images):
    source = Note(digits_resnet, steps=0)(images[:16])
    method = Note(digits_resnet, lr=0.0, **SMALL)
    before = [layer.running_mean.clone() for layer in method.batch_norms]
    assert torch.allclose(method(images[:16]), source, atol=1e-5)
    moved = [(layer.running_mean - mean).abs().max() for layer, mean
             in zip(method.batch_norms, before)]
    assert all(0 < step < 0.2 for step in moved)
    assert not torch.allclose(method(images[:16]), source, atol=1e-4)


def test_a_memory_of_one_image_is_learnt_from_by_running_statistics(digits_resnet, images):
    method = Note(digits_resnet, lr=0.1, memory=1, update_every=1)
    before = copy.deepcopy([layer.running_mean for layer in method.batch_norms])
    logits = torch.cat([method(image) for image in images[:3].split(1)])
    assert torch.isfinite(logits).all()
    assert all(map(torch.equal, before, [layer.running_mean for layer in method.batch_norms]))
    assert any(map(torch.ne, method.adapted.parameters[0], method.adapted.source[0]))


def test_without_batch_normalisation_memory_and_entropy_remain(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8 * 49, 10))
    method = Note(Classifier(net, mean=(0, 0, 0), std=(1, 1, 1)), lr=0.1, **SMALL)
    first = method(images[:16])
    assert not torch.equal(method(images[:16]), first)


# The memory

def filled(labels, capacity=8, seed=0):
    memory = Memory(capacity, seed)
    for number, label in enumerate(labels):
        memory.add(torch.tensor(float(number)), label)
    return memory


def test_the_memory_is_balanced_in_a_stream_sorted_by_class():
    memory = filled([0] * 20 + [1] * 20)
    assert {label: len(images) for label, images in memory.classes.items()} == {0: 4, 1: 4}


def test_a_small_class_takes_the_place_of_a_largest_one():
    memory = filled([0] * 5 + [1] * 3 + [2])
    assert [len(memory.classes[label]) for label in (0, 1, 2)] == [4, 3, 1]


def test_each_image_of_a_class_has_the_same_chance_to_stay():
    """A reservoir, for which images that were left out count, too."""
    kept = torch.cat([filled([0] * 80, seed=seed).content() for seed in range(300)])
    share = torch.histc(kept, 4, 0, 80) / len(kept)
    assert torch.allclose(share, torch.tensor(0.25), atol=0.04)
    assert filled([0] * 80).num_seen[0] == 80


def test_the_memory_keeps_images_and_not_the_batches_they_came_in(digits_resnet, images):
    method = Note(digits_resnet, **SMALL)
    method(images[:10])
    image = next(images for images in method.memory.classes.values() if images)[0]
    assert image.untyped_storage().nbytes() == image.nbytes


# Reset, defaults, bad values

@pytest.mark.slow
def test_reset_returns_to_the_source(digits_resnet, images):
    method = Note(digits_resnet, lr=0.01, **SMALL)
    first = adapt_and_reset(method, images)
    assert not method.memory.classes and not method.memory.num_seen and not method.num_images
    assert not method.adapted.optimizer.state
    assert torch.equal(torch.cat([method(batch) for batch in images.split(20)]), first)


def test_the_papers_defaults(digits_resnet):
    method = Note(digits_resnet)
    group = method.adapted.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 0)
    assert (method.memory_size, method.update_every, method.steps) == (64, 64, 1)
    assert {layer.momentum for layer in method.batch_norms} == {0.01}
    assert {module.k for module in method.modules()
            if isinstance(module, InstanceAwareBatchNorm)} == {4.0}


def test_bad_values_are_told(digits_resnet, bare):
    with pytest.raises(UserError, match="momentum 2"):
        Note(digits_resnet, momentum=2.0)
    with pytest.raises(UserError, match="memory 0"):
        Note(digits_resnet, memory=0)
    with pytest.raises(UserError, match="no normalisation layers"):
        Note(bare)
