"""BN-adapt: facts of its paper."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from tta_apm_baselines.norm import Norm

from tta_apm.errors import UserError


def test_alpha_0_is_the_source(digits_resnet, digits_test):
    images = digits_test[0]
    with torch.no_grad():
        expected = digits_resnet(images)
    assert torch.equal(Norm(digits_resnet, alpha=0.0)(images), expected)
    nearly = Norm(digits_resnet, pseudo_count=1e12)(images)
    assert torch.allclose(nearly, expected, atol=1e-3)


@pytest.mark.slow
def test_alpha_1_is_training_mode(digits_resnet, digits_test):
    images = digits_test[0]
    model = copy.deepcopy(digits_resnet)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    with torch.no_grad():
        expected = model(images)
    assert torch.allclose(Norm(digits_resnet)(images), expected, atol=1e-4)


def test_statistics_are_mixed_as_written(digits_resnet):
    """On a tensor of two channels: the batch's mean and biased variance have weight α."""
    backbone = copy.deepcopy(digits_resnet)
    backbone.net = nn.Sequential(nn.BatchNorm2d(2))
    backbone.net.eval()
    backbone.net[0].running_mean = torch.tensor([1.0, -1.0])
    backbone.net[0].running_var = torch.tensor([4.0, 0.25])
    method = Norm(backbone, alpha=0.25)
    method._batch_alpha = 0.25
    inputs = torch.tensor([[[[0.0, 2.0]], [[5.0, 5.0]]], [[[4.0, 6.0]], [[5.0, 5.0]]]])
    outputs = method.model.net(inputs)
    mean = torch.tensor([0.75 * 1 + 0.25 * 3, 0.75 * -1 + 0.25 * 5])
    variance = torch.tensor([0.75 * 4 + 0.25 * 5, 0.75 * 0.25])
    expected = (inputs - mean.view(1, 2, 1, 1)) / (variance.view(1, 2, 1, 1) + 1e-5).sqrt()
    assert torch.allclose(outputs, expected, atol=1e-6)


def test_pseudo_count_and_alpha_agree(digits_resnet, digits_test):
    images = digits_test[0][:48]
    by_count = Norm(digits_resnet, pseudo_count=16.0)(images)
    assert torch.allclose(by_count, Norm(digits_resnet, alpha=48 / 64)(images), atol=1e-5)


def test_bad_values_are_told(digits_resnet, digits_test):
    with pytest.raises(UserError, match="between 0 and 1"):
        Norm(digits_resnet, alpha=1.5)
    with pytest.raises(UserError, match="at least 0"):
        Norm(digits_resnet, pseudo_count=-1.0)
    with pytest.raises(ValueError, match="batch of one"):
        Norm(digits_resnet)(digits_test[0][:1])
    assert Norm(digits_resnet, pseudo_count=16.0)(digits_test[0][:1]).shape == (1, 10)
    plain = copy.deepcopy(digits_resnet)
    plain.net = nn.Linear(2, 2)
    with pytest.raises(UserError, match="no batch normalisation"):
        Norm(plain)
