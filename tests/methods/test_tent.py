"""TENT: facts of its paper and code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from tta_apm_baselines.tent import Tent

from tta_apm.errors import UserError
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.norm_layers import norm_layers, train_only


def test_only_scales_and_shifts_change(digits_resnet, images):
    method = Tent(digits_resnet)
    before = copy.deepcopy(method.model.state_dict())
    method(images)
    changed = {name for name, value in method.model.state_dict().items()
               if not torch.equal(value, before[name])}
    affine = {name for name, _ in method.model.named_parameters()
              if isinstance(method.model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)}
    assert changed == affine


def test_batch_statistics_in_train_and_eval(digits_resnet, images):
    model = copy.deepcopy(digits_resnet)
    assert use_batch_statistics(model)
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert layers and all(layer.running_mean is None for layer in layers)
    in_eval = model.eval()(images)
    assert torch.equal(model.train()(images), in_eval)


def test_a_step_lowers_the_entropy_of_the_batch(digits_resnet, images):
    method = Tent(digits_resnet)
    before = entropy(method(images)).mean()
    assert entropy(method.model(images)).mean() < before


def test_logits_are_those_before_the_last_step(digits_resnet, images):
    method = Tent(digits_resnet)
    expected = copy.deepcopy(method.model)(images)
    assert torch.equal(method(images), expected)
    assert not torch.equal(method.model(images), expected)
    two_steps = Tent(digits_resnet, steps=2)
    assert torch.equal(two_steps(images), method.model(images))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_reset_restores_bitwise_and_empties_the_optimiser(digits_resnet, images, optimizer):
    method = Tent(digits_resnet, optimizer=optimizer)
    before = copy.deepcopy(method.model.state_dict())
    method(images)
    assert method.optimizer.state
    method.reset()
    after = method.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not method.optimizer.state


def test_the_paper_s_optimisers(digits_resnet):
    adam = Tent(digits_resnet).optimizer.param_groups[0]
    assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (1e-3, (0.9, 0.999), 0)
    sgd = Tent(digits_resnet, optimizer="sgd", lr=2.5e-4).optimizer.param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"]) == (2.5e-4, 0.9, True)


def test_the_entropy_is_blind_to_the_order_of_classes():
    logits = torch.randn(5, 10)
    assert torch.allclose(entropy(logits), entropy(logits[:, torch.randperm(10)]), atol=1e-6)
    assert torch.allclose(entropy(torch.zeros(2, 4)), torch.tensor(4.0).log().expand(2))


def test_episodic_forgets_the_batch_before(digits_resnet, images):
    method = Tent(digits_resnet, episodic=True)
    first = method(images[:50])
    method(images[50:])
    assert torch.equal(method(images[:50]), first)


def test_layer_norm_is_adapted_where_there_is_no_batch_norm():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert not use_batch_statistics(model)
    assert [p.shape for p in train_only(model, norm_layers(model), "tent")] == [(4,), (4,)]
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, False, False]


def test_bad_values_are_told(digits_resnet, images, bare):
    with pytest.raises(UserError, match="steps 0"):
        Tent(digits_resnet, steps=0)
    with pytest.raises(UserError, match="did you mean 'adam'"):
        Tent(digits_resnet, optimizer="adamw")
    with pytest.raises(ValueError, match="batch of one"):
        Tent(digits_resnet)(images[:1])
    with pytest.raises(UserError, match="no normalisation layers"):
        Tent(bare)
