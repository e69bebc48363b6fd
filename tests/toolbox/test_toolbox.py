"""The toolbox: layers by position, features and head, filters, restoration."""

from __future__ import annotations

import math

import open_clip
import pytest
import timm
import torch
import torchvision
from torch import nn

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError
from tta_apm.toolbox.adapted import Adapted, ema_update
from tta_apm.toolbox.filters import MeanPrediction
from tta_apm.toolbox.head import Head
from tta_apm.toolbox.norm_layers import norm_layers, train_only, without_last_stage


def names(model: nn.Module, layers: list[nn.Module]) -> list[str]:
    by_id = {id(module): name for name, module in model.named_modules()}
    return [by_id[id(layer)] for layer in layers]


def left_out(model: nn.Module) -> list[str]:
    kept = names(model, without_last_stage(model))
    everything = names(model, norm_layers(model))
    assert kept == everything[:len(kept)] and kept
    return everything[len(kept):]


def small_vit(library: str) -> nn.Module:
    """A vision transformer of 12 blocks in one of three libraries."""
    if library == "timm":
        return timm.create_model("vit_tiny_patch16_224", embed_dim=24, num_heads=2)
    if library == "torchvision":
        return torchvision.models.VisionTransformer(32, 8, 12, 2, 24, 48)
    return open_clip.model.VisionTransformer(32, 8, 24, 12, 2, 2.0)


# Positions

def is_named_by_sar(name: str) -> bool:
    """Whether SAR's and DeYO's code, which knows timm's names, would leave the layer out."""
    blocks = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.")
    return any(word in name for word in blocks) or name == "norm"


@pytest.mark.slow
@pytest.mark.parametrize("model", [
    "resnet18", "resnet50", "resnet152", "resnet50_gn", "vit_tiny_patch16_224"])
def test_the_last_stage_by_position_is_what_the_authors_name_in_timm(model):
    net = timm.create_model(model)
    assert left_out(net) == [name for name in names(net, norm_layers(net))
                             if is_named_by_sar(name)]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet50", "densenet121", "efficientnet_b0", "vgg16_bn"])
def test_the_same_position_in_torchvision_and_timm(model):
    ours, theirs = timm.create_model(model), getattr(torchvision.models, model)()
    assert len(left_out(ours)) == len(left_out(theirs))
    assert len(norm_layers(ours)) == len(norm_layers(theirs))


@pytest.mark.parametrize("library", ["timm", "torchvision", "open_clip"])
def test_transformers_lose_three_of_twelve_blocks_and_the_last_norm(library):
    net = small_vit(library)
    assert len(left_out(net)) == 7
    assert names(net, norm_layers(net))[-1] in left_out(net)


@pytest.mark.slow
def test_stages_of_hierarchical_transformers():
    net = torchvision.models.swin_t()
    assert left_out(net)[0] == "features.6.norm"  # the merging before the fourth stage


def test_a_user_s_module_without_blocks_loses_a_quarter_of_its_layers():
    net = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(8)])
    assert left_out(net) == ["6.1", "7.1"]
    assert left_out(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.LayerNorm(4))) == ["2"]
    assert without_last_stage(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))) == []


def test_only_the_chosen_layers_train_and_those_without_scale_are_none():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, affine=False))
    found = train_only(net, norm_layers(net), "it")
    assert [parameter.shape for parameter in found] == [(4,), (4,)]
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


# Head

def classifier(net: nn.Module, keep=None) -> Classifier:
    return Classifier(net.eval(), image_size=None, mean=[0.5] * 3, std=[0.5] * 3, name="test/net",
                      weights="", keep=keep)


@pytest.mark.slow
@pytest.mark.parametrize("build", [
    lambda: timm.create_model("resnet18", num_classes=7),
    lambda: timm.create_model("mobilenetv3_small_050", num_classes=7),
    lambda: torchvision.models.densenet121(num_classes=7),
    lambda: torchvision.models.VisionTransformer(64, 8, 2, 2, 24, 48, num_classes=7),
    lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7, bias=False))],
    ids=["timm", "timm_mobile", "torchvision", "torchvision_vit", "user"])
@pytest.mark.parametrize("keep", [None, [4, 0, 2]], ids=["all", "some"])
def test_logits_are_features_times_weight(build, keep):
    torch.manual_seed(0)
    model = classifier(build(), keep)
    images = torch.rand(3, 3, 64, 64)
    head = Head(model, "test")
    with torch.no_grad():
        logits, features = head.features(images)
        assert torch.equal(logits, model(images))
        assert features.is_contiguous()  # else no other row could share them
        assert torch.allclose(head.logits(features), logits, atol=1e-6)
        bias = head.logits(torch.zeros_like(features))
        assert torch.allclose(features @ head.weight.T + bias, logits, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("net", [
    nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5), nn.Tanh()),
    torchvision.models.squeezenet1_1(num_classes=5)], ids=["none", "not_last", "convolution"])
def test_a_network_without_a_linear_head_is_told(net):
    with pytest.raises(UserError, match="test/net are not the output of a linear layer"):
        Head(classifier(net), "lame").features(torch.rand(2, 3, 64, 64))


# Filters, restoration

def test_the_mean_prediction():
    mean = MeanPrediction(0.9)
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert mean.similarity(first).tolist() == [0, 0]
    mean.update(first[:0])
    assert mean.value is None
    mean.update(first[:1])
    assert mean.similarity(first).tolist() == [1, 0]
    mean.update(first[1:])
    assert torch.allclose(mean.value, torch.tensor([0.9, 0.1]))
    cosine = 0.9 / math.hypot(0.9, 0.1)
    assert torch.allclose(mean.similarity(first[:1]), torch.tensor(cosine))
    mean.reset()
    assert mean.value is None


def test_adapted_restores_pulls_and_empties_its_optimiser():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    adapted = Adapted([parameter], lr=0.5, optimizer="sgd", owner="test")
    adapted.step(parameter.sum())
    assert parameter.tolist() == [0.5, 1.5] and adapted.optimizer.state
    adapted.ensemble_with_source(0.5)
    assert parameter.tolist() == [0.75, 1.75]
    adapted.restore()
    assert parameter.tolist() == [1, 2] and not adapted.optimizer.state
    with pytest.raises(UserError, match="test: unknown optimizer 'adamw'"):
        Adapted([parameter], lr=0.5, optimizer="adamw", owner="test")


def test_some_entries_are_restored_with_the_probability():
    parameter = nn.Parameter(torch.zeros(10_000))
    adapted = Adapted([parameter], lr=1.0, optimizer="sgd", owner="test")
    with torch.no_grad():
        parameter.fill_(1)
    adapted.stochastic_restore(0.1, torch.Generator().manual_seed(0))
    assert 0.09 < 1 - parameter.mean() < 0.11
    adapted.stochastic_restore(0, torch.Generator().manual_seed(0))
    assert parameter.mean() > 0.8
    adapted.stochastic_restore(1, torch.Generator().manual_seed(0))
    assert parameter.mean() == 0


def test_a_teacher_follows():
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        teacher.weight.fill_(0)
        student.weight.fill_(1)
    ema_update(teacher, student, 0.9)
    assert teacher.weight.item() == pytest.approx(0.1)
