"""online-tta's own methods in our sweeps, by its stand-in."""

from __future__ import annotations

import pytest
import torch

from host_runs import STANDINS
from tta_apm import cli
from tta_apm.errors import UserError


@pytest.fixture
def theirs(monkeypatch, digits_resnet):
    from tta_apm.interop.hosts import online_tta_methods
    monkeypatch.setattr(online_tta_methods, "PACKAGES", {})

    def make(**keywords):
        return online_tta_methods.OnlineTta(digits_resnet, repo=str(STANDINS / "online_tta"),
                                            name="tent", **keywords)
    return make


def test_their_method_adapts_our_backbone(theirs, digits_resnet, digits_test):
    images = digits_test[0][:16]
    before = digits_resnet(images)
    method = theirs(options=["OPTIM.LR", 0.5])
    with torch.no_grad():
        first, second = method(images), method(images)
    assert not torch.equal(first, second) and not first.requires_grad
    assert torch.equal(digits_resnet(images), before)
    assert not any(parameter.requires_grad for parameter in digits_resnet.parameters())


def test_reset_puts_back_what_their_reset_leaves(theirs, digits_test):
    images = digits_test[0][:16]
    method = theirs(options=["OPTIM.LR", 0.5], seed=3)
    runs = []
    for _ in range(2):
        torch.rand(())  # a random number of other code
        method.reset()
        runs.append(torch.stack([method(images), method(images)]))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], torch.stack([theirs(options=["OPTIM.LR", 0.5], seed=4)(images),
                                                 runs[0][1]]))


@pytest.mark.slow
def test_their_settings_count(theirs, digits_test, tmp_path):
    images = digits_test[0][:16]
    file = tmp_path / "tent.yaml"
    file.write_text("OPTIM: {LR: 0.5}\n")
    by_file = theirs(cfg=str(file))(images)
    assert torch.equal(by_file, theirs(options=["OPTIM.LR", 0.5])(images))
    steps = theirs(cfg=str(file), options=["OPTIM.STEPS", 2])(images)
    assert not torch.equal(by_file, steps)


@pytest.mark.parametrize("keywords, said", [
    ({"options": ["OPTIM.RATE", 1]}, "the host refuses this config"),
    ({"cfg": "cfgs/none.yaml"}, "there is no cfgs/none.yaml"),
], ids=["key", "file"])
def test_what_the_host_refuses_is_told(theirs, keywords, said):
    with pytest.raises(UserError, match=said):
        theirs(**keywords)


@pytest.mark.slow
def test_their_method_in_a_sweep_by_config_alone(monkeypatch, tmp_path, capsys):
    from tta_apm.interop.hosts import online_tta_methods
    monkeypatch.setattr(online_tta_methods, "PACKAGES", {})
    row = f"online_tta REPO {STANDINS / 'online_tta'} NAME tent"
    assert cli.main(["--cfg", "cfgs/digits_c/source.yaml",
                     "PLUGINS", "tta_apm.interop.hosts.online_tta_methods",
                     "METHODS", f"[source, '{row}']", "CORRUPTIONS", "[fog]", "NUM_IMAGES", "20",
                     "BATCH_SIZE", "10", "OUTPUT_DIR", str(tmp_path)]) == 0
    assert "online_tta" in capsys.readouterr().out
    assert len(list((tmp_path / "cells").rglob("*.json"))) == 2
