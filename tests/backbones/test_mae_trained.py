"""Networks of TTT-MAE's tables that are not adapted: jointly trained, and fine-tuned ones."""

from __future__ import annotations

import argparse

import pytest
import torch
from torch import nn

from tta_apm.backbones.build import build
from tta_apm.backbones.mae_vit import ARCHITECTURES, MaeVit, initialize
from tta_apm.backbones.mae_fine_tuned import make_vit
from tta_apm.errors import UserError

CLASSES = [str(digit) for digit in range(10)]


def load(kind, weights, classes=CLASSES, model="digits_mae", **keywords):
    return build(kind, model, str(weights), class_names=classes, templates=(), device="cpu",
                 **keywords)


@pytest.fixture
def fine_tuned(tmp_path):
    """A file as facebookresearch/mae saves a fine-tuned network, and that network."""
    def write(pool="avg", **extra):
        torch.manual_seed(0)
        net = make_vit(ARCHITECTURES["digits_mae"], 10, pool=pool)
        nn.init.normal_(net.cls_token)
        nn.init.normal_(net.head.weight)
        path = tmp_path / f"mae_finetuned_{pool}.pth"
        torch.save({"model": net.state_dict(), "optimizer": {"state": {}, "param_groups": []},
                    "epoch": 49, "scaler": {"scale": 65536.0},
                    "args": argparse.Namespace(global_pool=pool == "avg", drop_path=0.2), **extra},
                   path)
        return path, net.eval()
    return write


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_a_fine_tuned_file_loads_and_classifies_what_it_pooled(fine_tuned, pool, images):
    path, net = fine_tuned(pool)
    names = set(torch.load(path, weights_only=False)["model"])
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.3.attn.qkv.bias",
            "head.bias"} < names
    assert ("fc_norm.weight" in names, "norm.weight" in names) == (pool == "avg", pool == "token")
    backbone = load("mae_fine_tuned", path)
    tokens = net.patch_embed(backbone.prepare(images[:4]))
    tokens = torch.cat([net.cls_token.expand(4, -1, -1), tokens], 1) + net.pos_embed
    tokens = net.blocks(tokens)
    latent = (net.fc_norm(tokens[:, 1:].mean(1)) if pool == "avg" else net.norm(tokens)[:, 0])
    assert torch.allclose(backbone(images[:4]), net.head(latent), atol=1e-5)
    assert path.name in backbone.weights
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())


def test_nothing_in_a_fine_tuned_file_is_run(fine_tuned, harmful):
    path, _ = fine_tuned(scaler=harmful)
    load("mae_fine_tuned", path)
    assert not harmful.path.exists()


def test_a_jointly_trained_file_loads(tmp_path, images):
    torch.manual_seed(0)
    net = MaeVit(ARCHITECTURES["digits_mae"], 10)
    initialize(net)
    torch.save({"model": net.state_dict(), "optimizer": {"state": {}}, "epoch": 3,
                "args": argparse.Namespace(blr=1e-3)}, tmp_path / "joint.pth")
    backbone = load("mae_joint", tmp_path / "joint.pth")
    assert backbone.kind == "mae_joint"
    assert torch.equal(backbone(images[:4]), net.eval().classify(
        net.encode(backbone.prepare(images[:4]))))


def test_the_packaged_ones_know_digits(digits_mae_joint, digits_mae_fine_tuned, digits_test):
    for backbone in (digits_mae_joint, digits_mae_fine_tuned):
        accuracy = (backbone(digits_test[0]).argmax(1) == digits_test[1]).float().mean()
        assert accuracy > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind, keywords, message", [
    ("mae_fine_tuned", dict(weights="no.pth"), "MAE_FINE_TUNED.WEIGHTS: file not found: 'no.pth'.*"
     "mae_finetuned_vit_large.pth: download it"),
    ("mae_fine_tuned", dict(weights="digits_mae.safetensors"), "is of another network than"),
    ("mae_fine_tuned", dict(weights="digits_mae_fine_tuned.safetensors", classes=["a", "b"]),
     "has 10 classes, the data set 2"),
    ("mae_fine_tuned", dict(weights="", model="vit"), "MAE_FINE_TUNED.MODEL: unknown 'vit'"),
    ("mae_joint", dict(weights="no.pth"), "MAE_JOINT.WEIGHTS: file not found: 'no.pth'.*"
     "tta-apm train digits_mae_joint"),
    ("mae_joint", dict(weights="", model="vit"), "MAE_JOINT.MODEL: unknown 'vit'"),
])
def test_wrong_settings_are_told(kind, keywords, message):
    with pytest.raises(UserError, match=message):
        load(kind, **keywords)
