"""Our methods in online-tta, by its stand-in."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tta_apm_baselines.tent import Tent

from host_runs import DOMAINS, IN_HOST_CLIP, SMALL, SMALL_PAIRS, STANDINS, standin
from tta_apm.apm.method import Apm
from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError
from tta_apm.interop.hosts import online_tta

pytestmark = pytest.mark.usefixtures("hosts_of_digits")


def in_online_tta(in_host, *words: str) -> dict:
    return in_host("online-tta", "--cfg", "cfgs/tent.yaml", *words)


@pytest.mark.slow
def test_apm_asks_the_hosts_clip_with_its_text_features(in_host, digits_clip):
    found = in_online_tta(in_host, "MODEL.ADAPTATION", "apm", *IN_HOST_CLIP, *SMALL_PAIRS)
    conf, test_time, models = standin("online_tta/classification", "conf", "test_time",
                                      "models.model")
    cfg = conf._CFG_DEFAULT.clone()
    cfg.merge_from_list(IN_HOST_CLIP)
    clip = online_tta._backbone("clip", cfg, models.get_model(cfg, 10, "cpu")[0])
    method = Apm(clip, **SMALL, seed=1)
    for name in DOMAINS:
        images = test_time.images_of(name[:-1], int(name[-1]), 17)
        assert found["predictions"][name] == method(images).argmax(1).tolist(), name
    assert len({tuple(of) for of in found["predictions"].values()}) == len(DOMAINS)


def test_reset_order_is_the_hosts(in_host):
    words = ["MODEL.ADAPTATION", "tta_apm_tent", "TEST.NUM_IMAGES", "16"]
    domain = [8, 8] * 2
    assert in_online_tta(in_host, *words)["calls"] == ["reset", *domain, *domain]
    found = in_online_tta(in_host, *words, "SETTING", "reset_each_shift")
    assert found["calls"] == ["reset", *domain] * 2


@pytest.mark.slow
def test_steps_are_those_of_the_methods_own_section(in_host):
    words = ["MODEL.ADAPTATION", "tta_apm_tent", "TTA_APM_TENT.LR", "0.5"]
    once = in_online_tta(in_host, *words)["predictions"]
    assert in_online_tta(in_host, *words, "OPTIM.STEPS", "5")["predictions"] == once
    assert in_online_tta(in_host, *words, "TTA_APM_TENT.STEPS", "5")["predictions"] != once


def test_tent_over_the_hosts_classifier(in_host):
    found = in_online_tta(in_host, "MODEL.ADAPTATION", "tta_apm_tent", "TTA_APM_TENT.LR", "0.5",
                          "TEST.NUM_IMAGES", "16", "SETTING", "reset_each_shift",
                          "CORRUPTION.SEVERITY", "[5]")
    conf, test_time, models = standin("online_tta/classification", "conf", "test_time",
                                      "models.model")
    net, _ = models.get_model(conf.cfg, 10, "cpu")
    method = Tent(Classifier(net, image_size=None, mean=(0, 0, 0), std=(1, 1, 1), name="net",
                             weights=""), lr=0.5)
    for name in ("fog5", "snow5"):
        method.reset()
        images = test_time.images_of(name[:-1], 5, 16)
        expected = torch.cat([method(batch) for batch in images.split(8)]).argmax(1).tolist()
        assert found["predictions"][name] == expected


@pytest.mark.slow
def test_a_yaml_file_may_hold_our_section(in_host, tmp_path):
    words = ["MODEL.ADAPTATION", "apm", *IN_HOST_CLIP]
    by_words = in_online_tta(in_host, *words, *SMALL_PAIRS)
    file = tmp_path / "apm.yaml"
    file.write_text(f"APM: {json.dumps({key.upper(): value for key, value in SMALL.items()})}\n")
    assert in_host("online-tta", "--cfg", str(file), *words) == by_words


@pytest.mark.slow
def test_wrong_settings_are_told_in_a_sentence(refused):
    said = partial(refused, "online-tta", "--cfg", "cfgs/tent.yaml")

    assert "unknown key 'APM.STEP': did you mean 'STEPS'?" in said("APM.STEP", "3")
    assert "APM.STEPS many" in said("APM.STEPS", "many")
    assert "APM.LR has no value" in said("APM.LR")
    assert "MODEL.USE_CLIP True" in said("MODEL.ADAPTATION", "apm")
    assert "MAE.MODEL and MAE.WEIGHTS" in said("MODEL.ADAPTATION", "ttt_mae")


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no classification/test_time.py in"):
        online_tta.run(tmp_path, [])
    monkeypatch.setattr(online_tta, "PACKAGES", {"json": "json", "no_such_module": "no-such"})
    with pytest.raises(UserError, match="pip install no-such$"):
        online_tta.run(STANDINS / "online_tta", [])


def test_a_host_leaves_no_trace(in_host):
    before = set(sys.modules), list(sys.path), list(sys.argv), Path.cwd()
    in_online_tta(in_host, "MODEL.ADAPTATION", "source")
    assert {"conf", "methods", "test_time", "utils"}.isdisjoint(set(sys.modules) - before[0])
    assert (list(sys.path), list(sys.argv), Path.cwd()) == before[1:]
