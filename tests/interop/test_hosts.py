"""Hosts: our methods with other benchmarks' interfaces, and their methods with ours.

The stand-ins in tests/standins/ have the hosts' calls, arguments, grad modes and order of resets.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tta_apm_baselines.tent import Tent

from places import ROOT
from tta_apm import cli
from tta_apm.apm.method import Apm
from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.weights.files import PACKAGED
from tta_apm.data.digits import CLASS_NAMES, TEMPLATE_SET
from tta_apm.errors import UserError
from tta_apm.interop.hosts import backbones, benchmark_tta, launch, online_tta, ttab
from tta_apm.interop.hosts.hosted import Hosted
from tta_apm.method import Method

STANDINS = ROOT / "tests" / "standins"
DOMAINS = [f"{name}{severity}" for name in ("fog", "snow") for severity in (5, 3)]
SMALL = dict(image_size=32, patch=8, hidden=[16], code=16, steps=3, lr=0.01)
SMALL_PAIRS = [word for key, value in SMALL.items()
               for word in (f"APM.{key.upper()}", str(value))]
DIGITS_CLIP = str(PACKAGED / "digits_clip.safetensors")
IN_HOST_CLIP = ["MODEL.USE_CLIP", "True", "MODEL.ARCH", "digits_clip", "MODEL.WEIGHTS", DIGITS_CLIP]
OUR_CLIP = ["CLIP.MODEL", "digits_clip", "CLIP.WEIGHTS", "digits_clip.safetensors",
            "CLIP.TEMPLATES", "digits"]


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """The stand-ins do not need the hosts' packages, and the packaged CLIP knows digits only."""
    for host in (online_tta, ttab, benchmark_tta):
        monkeypatch.setattr(host, "PACKAGES", {})
    monkeypatch.setattr(backbones, "_classes", lambda dataset: (CLASS_NAMES, TEMPLATE_SET))


@pytest.fixture
def in_host(tmp_path):
    """Run a stand-in by the command line; returns its trace."""
    def run(host: str, *words: str) -> dict:
        trace = tmp_path / "trace.json"
        option = ["--trace", str(trace)] if host == "ttab" else []
        pairs = [] if option else ["TRACE", str(trace)]
        assert cli.main(["host", host, "--repo", str(STANDINS / host.replace("-", "_")), "--",
                         *option, *words, *pairs]) == 0
        return json.loads(trace.read_text())
    return run


def in_online_tta(in_host, *words: str) -> dict:
    return in_host("online-tta", "--cfg", "cfgs/tent.yaml", *words)


def in_benchmark_tta(in_host, *words: str) -> dict:
    return in_host("benchmark-tta", "--cfg", "cfgs/source.yaml", *words)


def standin(host: str, *modules: str):
    """The modules of a stand-in, imported separately."""
    folder = STANDINS / host
    tops = [name.split(".")[0] for name in modules]
    with launch.inside(folder), launch.own_modules(tops, {}):
        return [__import__(name, fromlist=["_"]) for name in modules]


# online-tta


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
def test_wrong_settings_are_told_in_a_sentence(capsys):
    def said(*words: str) -> str:
        assert cli.main(["host", "online-tta", "--repo", str(STANDINS / "online_tta"), "--",
                         "--cfg", "cfgs/tent.yaml", *words]) == 2
        return capsys.readouterr().err

    assert "unknown key 'APM.STEP': did you mean 'STEPS'?" in said("APM.STEP", "3")
    assert "APM.STEPS many" in said("APM.STEPS", "many")
    assert "APM.LR has no value" in said("APM.LR")
    assert "MODEL.USE_CLIP True" in said("MODEL.ADAPTATION", "apm")
    assert "MAE.MODEL and MAE.WEIGHTS" in said("MODEL.ADAPTATION", "ttt_mae")


@pytest.mark.parametrize("words", [
    ("online-tta", "--cfg", "cfgs/tent.yaml", "MODEL.ADAPTATION", "shot", *IN_HOST_CLIP),
    ("ttab", "--model_adaptation_method", "shot"),
    ("benchmark-tta", "--cfg", "cfgs/source.yaml", "MODEL.ADAPTATION", "shot")],
    ids=lambda words: words[0])
def test_an_offline_method_is_refused(words, capsys):
    host, *others = words
    assert cli.main(["host", host, "--repo", str(STANDINS / host.replace("-", "_")), "--",
                     *others]) == 2
    assert "shot is offline: it sees all images of a domain before" in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no classification/test_time.py in"):
        online_tta.run(tmp_path, [])
    monkeypatch.setattr(online_tta, "PACKAGES", {"json": "json", "no_such_module": "no-such"})
    with pytest.raises(UserError, match="pip install no-such$"):
        online_tta.run(STANDINS / "online_tta", [])


def test_another_commit_and_changed_files_are_told(tmp_path, capsys):
    def git(*words: str) -> str:
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
                              cwd=tmp_path, check=True, text=True, capture_output=True).stdout

    def said(tested: str) -> str:
        launch.tell_commit(tmp_path, tested)
        return capsys.readouterr().err

    file = tmp_path / "test_time.py"
    file.write_text("")
    assert said("8b2ed63") == ""  # no clone of git's
    git("init", "-q"), git("add", "."), git("commit", "-qm", "x")
    here = git("rev-parse", "HEAD")[:7]
    assert said(here) == ""
    assert said("8b2ed63") == f"tta-apm: the clone is at commit {here}, tested is 8b2ed63\n"
    file.write_text("changed")
    assert said(here) == "tta-apm: the clone differs from its commit in 1 file\n"


def test_a_host_leaves_no_trace(in_host):
    before = set(sys.modules), list(sys.path), list(sys.argv), Path.cwd()
    in_online_tta(in_host, "MODEL.ADAPTATION", "source")
    assert {"conf", "methods", "test_time", "utils"}.isdisjoint(set(sys.modules) - before[0])
    assert (list(sys.path), list(sys.argv), Path.cwd()) == before[1:]


# ttab


@pytest.mark.slow
def test_ttab_images_are_denormalised_for_apm(in_host, digits_clip):
    found = in_host("ttab", "--model_adaptation_method", "apm", *OUR_CLIP, *SMALL_PAIRS)
    (run_exp,) = standin("ttab", "run_exp")
    method = Apm(digits_clip, **SMALL, seed=1)
    assert found["predictions"] == method(run_exp.images()).argmax(1).tolist()
    assert found["name"] == found["arguments"]["model_adaptation_method"] == "apm"
    assert found["arguments"]["tta_apm"]["APM"]["STEPS"] == 3
    assert found["arguments"]["tta_apm_backbone"] == "digits_clip"


@pytest.mark.parametrize("episodic", [False, True])
def test_ttab_tent_sees_what_the_hosts_network_saw(in_host, episodic):
    found = in_host("ttab", "--model_adaptation_method=tta_apm_tent", "TTA_APM_TENT.LR", "0.5",
                    "--episodic", str(episodic).lower())
    run_exp, networks = standin("ttab", "run_exp", "ttab.loads.define_model")
    statistics = run_exp.STATISTICS
    method = Tent(Classifier(networks.define_model(None), image_size=None, mean=statistics["mean"],
                             std=statistics["std"], name="net", weights=""), lr=0.5,
                  episodic=episodic)
    expected = torch.cat([method(batch) for batch in run_exp.images().split(8)])
    assert found["predictions"] == expected.argmax(1).tolist()


def test_ttabs_own_methods_still_run(in_host):
    assert in_host("ttab", "--model_adaptation_method", "tent")["name"] == "no_adaptation"


def test_ttabs_oracle_is_refused(capsys):
    assert cli.main(["host", "ttab", "--repo", str(STANDINS / "ttab"), "--",
                     "--model_adaptation_method", "tta_apm_tent",
                     "--model_selection_method", "oracle_model_selection"]) == 2
    assert "last_iterate only" in capsys.readouterr().err


# benchmark-tta


@pytest.mark.slow
def test_benchmark_tta_hands_apm_images_that_are_not_normalised(in_host, digits_clip, tmp_path):
    (tmp_path / "CIFAR-10-C").mkdir()
    for name in ("labels", "fog", "snow"):
        (tmp_path / f"CIFAR-10-C/{name}.npy").touch()
    found = in_benchmark_tta(in_host, "MODEL.ADAPTATION", "apm", *OUR_CLIP, *SMALL_PAIRS,
                             "CORRUPTION.DATASET", "cifar10_c", "OUTPUT", "mine",
                             "DATA_DIR", str(tmp_path))
    (data,) = standin("benchmark_tta", "src.data.data")
    method = Apm(digits_clip, **SMALL, seed=1)
    for name in DOMAINS:
        images = data.images_of(name[:-1], int(name[-1]))
        assert found["predictions"][name] == method(images).argmax(1).tolist(), name
    assert found["calls"] == ["reset", 8, 8, 1, 8, 8, 1] * 2
    assert found["output"] == "mine"  # of the pair; the host made mine/online_evaluation


def test_benchmark_ttas_normalisation_moves_into_the_backbone(in_host):
    words = ["CORRUPTION.DATASET", "imagenet_c"]
    theirs = in_benchmark_tta(in_host, "MODEL.ADAPTATION", "source", *words)
    ours = in_benchmark_tta(in_host, "MODEL.ADAPTATION", "tta_apm_source", *words)
    assert ours["predictions"] == theirs["predictions"]
    assert theirs["calls"][0] == "not resetting" and ours["calls"][0] == "reset"


def test_benchmark_tta_tells_what_is_not_there(capsys, tmp_path):
    def said(*words: str) -> str:
        assert cli.main(["host", "benchmark-tta", "--repo", str(STANDINS / "benchmark_tta"), "--",
                         "--cfg", "cfgs/source.yaml", *words]) == 2
        return capsys.readouterr().err

    assert "there is no folder nowhere in" in said("DATA_DIR", "nowhere")
    assert "did you mean 'tta_apm_tent'?" in said("MODEL.ADAPTATION", "tta_apm_tant")
    (tmp_path / "CIFAR-10-C").mkdir()
    (tmp_path / "CIFAR-10-C/labels.npy").touch()
    assert f"there is no file {tmp_path}/CIFAR-10-C/fog.npy" in said(
        "DATA_DIR", str(tmp_path), "CORRUPTION.DATASET", "cifar10_c")


# Single images


class Counting(Method):
    """A method whose logits encode the number of its updates and of images."""

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope  # type: ignore[misc]
        self.reset()

    def forward(self, images):
        self.updates += 1
        return torch.tensor([[self.updates, len(images)]]).expand(len(images), 2)

    def reset(self):
        self.updates = 0


def single(hosted: Hosted, count: int) -> list[list[int]]:
    return [hosted(torch.zeros(1, 3, 4, 4))[0].tolist() for _ in range(count)]


def test_a_method_that_sees_images_alone_gets_no_company():
    assert single(Hosted(Counting("image"), window=4), 3) == [[1, 1], [2, 1], [3, 1]]


def test_a_window_of_single_images_fills_and_slides():
    assert single(Hosted(Counting("batch"), window=3), 5) == [[1, 1], [2, 2], [3, 3], [4, 3],
                                                              [5, 3]]


def test_state_moves_on_once_per_window():
    hosted = Hosted(Counting("stream"), window=3)
    # The predictions in between are from copies, which are one update ahead.
    assert single(hosted, 6) == [[1, 1], [1, 2], [1, 3], [2, 3], [2, 3], [2, 3]]
    assert hosted.method.updates == 2


def test_the_last_image_of_a_domain_joins_those_before_it():
    hosted = Hosted(Counting("stream"))
    hosted(torch.zeros(5, 3, 4, 4))
    assert single(hosted, 1) == [[2, 5]]


def test_episodic_and_reset_every():
    hosted = Hosted(Counting("stream"), episodic=True)
    assert [hosted(torch.zeros(2, 3, 4, 4))[0, 0].item() for _ in range(3)] == [1, 1, 1]
    hosted = Hosted(Counting("stream"), reset_every=2)
    assert [hosted(torch.zeros(2, 3, 4, 4))[0, 0].item() for _ in range(5)] == [1, 2, 1, 2, 1]


def test_of_a_list_of_views_the_first_is_the_image():
    images = torch.zeros(2, 3, 4, 4)
    assert Hosted(Counting("image"))([images, images[:1]]).shape == (2, 2)


# The hosts' methods in sweeps


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
