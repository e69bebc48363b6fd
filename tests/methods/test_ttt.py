"""TTT with rotation prediction: facts of its paper and code, and its Y-shaped backbones."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tta_apm_baselines.ttt import Ttt, TttOnline

from tta_apm.backbones.rotation import MODELS, Rotation, all_rotations, load_rotation, rotate
from tta_apm.errors import UserError
from tta_apm.toolbox.episodes import image_generators
from tta_apm.toolbox.views import pad_crop_views

DIGITS = ("digits_rotation", "digits_rotation.safetensors")
load = partial(load_rotation, num_classes=10, device="cpu")


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def adapted(method, images):
    """The weights [B,...] of images after the standard method's updates."""
    weights = method.fresh_weights(len(images))
    method.adapt(weights, images)
    return weights


# Rotations

@pytest.mark.parametrize("turns", range(4))
def test_a_rotation_is_that_of_torch_and_four_quarters_are_none(turns):
    image = torch.rand(1, 3, 5, 5)
    rotated = rotate(image, torch.tensor([turns]))
    assert torch.equal(rotated[0], torch.rot90(image[0], turns, (1, 2)))
    assert torch.equal(rotate(rotated, torch.tensor([(4 - turns) % 4])), image)


def test_each_image_is_rotated_by_its_own_turns():
    images, turns = torch.rand(6, 3, 4, 4), torch.tensor([3, 0, 1, 2, 3, 1])
    expected = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(images, turns)])
    assert torch.equal(rotate(images, turns), expected)


def test_all_rotations_holds_each_image_four_times():
    images = torch.rand(3, 3, 4, 4)
    rotated, turns = all_rotations(images)
    assert turns.bincount().tolist() == [3, 3, 3, 3]
    assert torch.equal(rotate(rotated, (4 - turns) % 4), images.repeat(4, 1, 1, 1))


# Backbones

def test_the_counts_of_resnet_26():
    net = MODELS["resnet26_gn"].make(10)
    assert count(net.trunk, net.classifier) == 366_938
    assert count(net.trunk, net.rotation) == 366_548


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(MODELS))
def test_shapes_and_normalisation(model):
    make, size, *_ = MODELS[model]
    net = make(7)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    with torch.no_grad():
        assert net(torch.rand(2, 3, size, size)).shape == (2, 7)
        assert net(torch.rand(2, 3, size, size), "rotation").shape == (2, 4)


def test_imagenet_s_network_is_resnet_18_with_a_second_last_stage():
    net = MODELS["resnet18_gn"].make(1000)
    assert count(net.trunk, net.classifier) == 11_689_512
    assert count(net.rotation) == count(net.classifier) - 1000 * 513 + 4 * 513
    assert {layer.num_groups for layer in net.modules() if isinstance(layer, nn.GroupNorm)} == {32}


def test_both_branches_share_one_trunk_and_nothing_else(digits_rotation, images):
    net = copy.deepcopy(digits_rotation.net)
    inputs = digits_rotation.prepare(images[:4])
    before = net(inputs), net(inputs, "rotation")
    with torch.no_grad():
        net.trunk.conv1.weight.mul_(2)
        assert not torch.equal(net(inputs), before[0])
        assert not torch.equal(net(inputs, "rotation"), before[1])
        net = copy.deepcopy(digits_rotation.net)
        net.rotation.layer3[0].conv1.weight.mul_(2)
        assert torch.equal(net(inputs), before[0])
        assert not torch.equal(net(inputs, "rotation"), before[1])


def test_the_packaged_weights_know_digits_and_rotations(digits_rotation, digits_test):
    images, labels = digits_test
    assert (digits_rotation(images).argmax(1) == labels).float().mean() > 0.9
    rotated, turns = all_rotations(digits_rotation.prepare(images))
    with torch.no_grad():
        found = digits_rotation.net(rotated, "rotation").argmax(1)
    assert (found == turns).float().mean() > 0.8


# Files of weights

@pytest.fixture
def authors_checkpoint(digits_rotation):
    """A file of weights in the format of the authors' code."""
    net, head = {}, {}
    names = [name for name, _ in digits_rotation.net.rotation.named_children()]
    for name, value in digits_rotation.net.state_dict().items():
        part, layer, rest = name.split(".", 2)
        if part == "rotation":
            head[f"{names.index(layer)}.{rest}"] = value
        else:
            net[f"{layer}.{rest}"] = value
    return {"net": net, "head": head}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_checkpoints_load(digits_rotation, authors_checkpoint, images, tmp_path,
                                      prefix):
    net = {prefix + name: value for name, value in authors_checkpoint["net"].items()}
    assert prefix + "layer1.0.bn1.weight" in net and "5.bias" in authors_checkpoint["head"]
    torch.save({**authors_checkpoint, "net": net, "optimizer": {}}, tmp_path / "ckpt.pth")
    backbone = load("digits_rotation", str(tmp_path / "ckpt.pth"))
    for name, value in digits_rotation.net.state_dict().items():
        assert torch.equal(backbone.net.state_dict()[name], value)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_told(authors_checkpoint, tmp_path):
    file = tmp_path / "ckpt.pth"
    torch.save(authors_checkpoint, file)
    with pytest.raises(UserError, match="has 10 classes, the data set 7"):
        load("digits_rotation", str(file), num_classes=7)
    with pytest.raises(UserError, match=r"of another network.*missing \(classifier"):
        load("resnet26_gn", str(file))
    del authors_checkpoint["head"]["5.bias"]
    torch.save(authors_checkpoint, file)
    with pytest.raises(UserError, match=r"1 of its \d+ tensors are missing \(rotation.fc.bias\)"):
        load("digits_rotation", str(file))
    authors_checkpoint["head"] = {"weight": torch.zeros(4, 32), "bias": torch.zeros(4)}
    torch.save(authors_checkpoint, file)
    with pytest.raises(UserError, match="of another network"):
        load("digits_rotation", str(file))


def test_wrong_names_are_told():
    with pytest.raises(UserError, match="ROTATION.MODEL.*did you mean 'resnet26_gn'"):
        load("resnet26", "digits_rotation.safetensors")
    with pytest.raises(UserError, match="ROTATION.WEIGHTS: file not found: 'nowhere.pth'"):
        load("digits_rotation", "nowhere.pth")


# The standard method

def test_the_paper_s_values(digits_rotation):
    method, online = Ttt(digits_rotation), TttOnline(digits_rotation)
    assert (method.steps, method.lr, method.num_views, method.flip) == (10, 1e-3, 32, True)
    assert (online.steps, online.lr, online.num_views, online.flip) == (1, 1e-3, 32, True)


def test_trunk_and_rotation_branch_change_and_the_classifier_does_not(digits_rotation, images):
    weights = adapted(Ttt(digits_rotation, steps=1, lr=0.1), images[:2])
    before = dict(digits_rotation.net.named_parameters())
    assert weights.keys() == {name for name in before if not name.startswith("classifier.")}
    for name, value in weights.items():
        assert not torch.equal(value[0], before[name]), name
        assert not torch.equal(value[0], value[1]), name


def by_hand(backbone, image, *, steps, lr, num_views, seed, net=None):
    """One image's logits and its adapted network, without stacking."""
    net = copy.deepcopy(backbone.net) if net is None else net
    parameters = [*net.trunk.parameters(), *net.rotation.parameters()]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.SGD(parameters, lr=lr)
    generators = image_generators(image, seed)
    for _ in range(steps):
        turns = torch.randint(4, (num_views,), generator=generators[0])
        views = pad_crop_views(image, num_views, generators)[0]
        rotated = torch.stack([view.rot90(int(k), (1, 2)) for view, k in zip(views, turns)])
        optimizer.zero_grad()
        F.cross_entropy(net(backbone.prepare(rotated), "rotation"), turns).backward()
        optimizer.step()
    return net(backbone.prepare(image)), net


def test_a_batch_is_adapted_as_the_paper_says_for_each_image(digits_rotation, images):
    settings = dict(steps=3, lr=0.05, num_views=8, seed=3)
    logits = Ttt(digits_rotation, **settings)(images[:3])
    for b in range(3):
        expected, _ = by_hand(digits_rotation, images[b:b + 1], **settings)
        assert torch.allclose(logits[b], expected[0], atol=1e-4)
        assert (expected - digits_rotation(images[b:b + 1])).abs().max() > 1e-2


def test_a_step_lowers_the_rotation_loss_of_its_batch(digits_rotation, images):
    method = Ttt(digits_rotation, steps=1)
    weights = method.fresh_weights(4)

    def loss():
        return method.rotation_loss(weights, images[:4], image_generators(images[:4], method.seed))
    before = loss()
    method.adapt(weights, images[:4])
    assert (loss() < before).all()


@pytest.mark.parametrize("cls", [Ttt, TttOnline])
@pytest.mark.parametrize("settings", [dict(steps=0), dict(steps=2, lr=0.0)],
                         ids=["no step", "no rate"])
def test_without_adaptation_it_is_the_source(digits_rotation, images, cls, settings):
    logits = cls(digits_rotation, num_views=4, **settings)(images[:5])
    assert torch.allclose(logits, digits_rotation(images[:5]), atol=1e-5)


def test_a_network_of_more_classes_is_left_those_of_the_data_set(digits_rotation, images):
    few, settings = load(*DIGITS, keep=(7, 0)), dict(steps=1, num_views=4)
    assert torch.equal(few(images), digits_rotation(images)[:, [7, 0]])
    assert torch.equal(Ttt(few, **settings)(images[:3]),
                       Ttt(digits_rotation, **settings)(images[:3])[:, [7, 0]])


def test_neither_order_nor_chunks_matter_to_the_standard_method(digits_rotation, images):
    method = Ttt(digits_rotation, steps=2, lr=0.1, num_views=8)
    method.chunk = 5
    together = method(images[:5])
    assert torch.allclose(method(images[:5].flip(0)).flip(0), together, atol=1e-4)
    method.chunk = 2
    assert torch.allclose(method(images[:5]), together, atol=1e-4)


def test_the_seed_and_the_flip_choose_the_views(digits_rotation, images):
    def logits(**settings):
        return Ttt(digits_rotation, steps=1, lr=0.1, num_views=4, **settings)(images[:2])
    assert torch.equal(logits(), logits(seed=42))
    assert not torch.equal(logits(), logits(seed=1))
    assert not torch.equal(logits(), logits(flip=False))


@pytest.mark.slow
def test_networks_for_imagenet_see_resized_crops(monkeypatch):
    model = MODELS["resnet18_gn"]
    backbone, size = Rotation(model.make(5), model, name="resnet18_gn", weights="random"), 224
    asked = []

    def crops(images, num_views, generators, **settings):
        asked.append(settings)
        return images[:, None, :, :size, :size].expand(-1, num_views, -1, -1, -1)
    monkeypatch.setattr("tta_apm_baselines.ttt.crop_views", crops)
    logits = Ttt(backbone, steps=1, num_views=2)(torch.rand(1, 3, 240, 240))
    assert logits.shape == (1, 5)
    assert asked == [dict(size=224, flip=True)]


# The online method

def test_online_carries_weights_from_image_to_image(digits_rotation, images):
    settings = dict(steps=1, lr=0.05, num_views=8, seed=3)
    method = TttOnline(digits_rotation, **settings)
    logits = torch.cat([method(images[:3]), method(images[3:4])])
    net = None
    for b in range(4):
        expected, net = by_hand(digits_rotation, images[b:b + 1], net=net, **settings)
        assert torch.allclose(logits[b], expected[0], atol=1e-4)


def test_online_depends_on_the_order_and_not_on_the_batches(digits_rotation, images):
    method = TttOnline(digits_rotation, lr=0.05, num_views=8)

    def logits(images, *sizes):
        method.reset()
        return torch.cat([method(part) for part in images.split(sizes)])
    expected = logits(images[:6], 6)
    assert torch.equal(logits(images[:6], 1, 3, 2), expected)
    assert not torch.allclose(logits(images[:6].flip(0), 6).flip(0), expected, atol=1e-2)


def test_reset_restores_the_source_bitwise(digits_rotation, images):
    method = TttOnline(digits_rotation, lr=0.05, num_views=8)
    method(images[:2])
    before = dict(digits_rotation.net.named_parameters())
    assert not any(torch.equal(value[0], before[name]) for name, value in method.weights.items())
    method.reset()
    assert all(torch.equal(value[0], before[name]) for name, value in method.weights.items())


@pytest.mark.parametrize("cls, name", [(Ttt, "ttt"), (TttOnline, "ttt_online")])
def test_bad_values_are_told(digits_rotation, cls, name):
    with pytest.raises(UserError, match=f"{name}: steps -1"):
        cls(digits_rotation, steps=-1)
    with pytest.raises(UserError, match=f"{name}: .*num_views 0"):
        cls(digits_rotation, num_views=0)
