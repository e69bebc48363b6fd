"""The real hosts, by the commands of docs/hosts: methods of ours give there what they give here.

Their archives and real images lie beside the project; the tests skip where these are absent.
"""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec

import pytest
import real_hosts
import torch
from real_hosts import CLIP, MAE, METHODS_OF_OURS, NETWORK, ROTATION, Trace, pairs_of

from places import SHARED
from tta_apm import cli
from tta_apm.backbones.build import build
from tta_apm.data.digits import CLASS_NAMES, TEMPLATE_SET
from tta_apm.errors import UserError
from tta_apm.interop.hosts import backbones, hosted, online_tta, ttab
from tta_apm.registry import METHODS

MISSING = sorted(package for module, package in {**online_tta.PACKAGES, **ttab.PACKAGES}.items()
                 if find_spec(module) is None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not real_hosts.ONLINE_TTA.is_file() or not (SHARED / "data").is_dir(),
                       reason="no hosts beside the project"),
    pytest.mark.skipif(bool(MISSING), reason=f"pip install -e .[hosts]: the hosts need {MISSING}")]
BACKBONE = {"classifier": NETWORK, "clip": CLIP, "mae": MAE, "rotation": ROTATION}
DOMAINS = ["CORRUPTION.TYPE", "['gaussian_noise','contrast']", "CORRUPTION.SEVERITY", "[5]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return real_hosts.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clones")
    return {"online-tta": real_hosts.unpack(real_hosts.ONLINE_TTA, folder),
            "ttab": real_hosts.unpack(real_hosts.TTAB, folder)}


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """The packaged CLIP knows digits only; ttab asks torchvision for a checksum of CIFAR-10."""
    monkeypatch.setattr(backbones, "_classes", lambda dataset: (CLASS_NAMES, TEMPLATE_SET))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    for handler in list(logging.root.handlers):  # a host's: it writes into a clone
        if type(handler) in (logging.FileHandler, logging.StreamHandler):
            logging.root.removeHandler(handler)


@pytest.fixture
def trace(monkeypatch):
    return Trace().of(monkeypatch)


@pytest.fixture
def in_online_tta(clones, data, capfd, caplog):
    """Run online-tta, without anything to download; the errors in % that its log tells."""
    def run(*words: str, images: int = 20, cfg: str = "tent") -> list[float]:
        caplog.clear()
        caplog.set_level(logging.INFO)
        code = cli.main(["host", "online-tta", "--repo", str(clones["online-tta"]), "--", "--cfg",
                         f"cfgs/cifar10_c/{cfg}.yaml", "DATA_DIR", str(data), *DOMAINS,
                         "CORRUPTION.NUM_EX", str(images), "TEST.NUM_WORKERS", "0", *words])
        assert code == 0, capfd.readouterr().err[-2000:]
        return [float(error) for error in re.findall(r"#samples=\d+\]: ([\d.]+)%", caplog.text)]
    return run


def ours(name: str, keywords: dict) -> hosted.Method:
    """A method of ours over the backbone of the commands, as in a plain loop."""
    backbone = backbone_of(METHODS.signature(name).needs)
    return hosted.make_method(name, keywords, backbone, seed=1)


def backbone_of(kind: str):
    words = BACKBONE[kind]
    section = {key.split(".")[1]: value for key, value in zip(words[::2], words[1::2])}
    if kind == "classifier":
        section |= {"MEAN": (0.485, 0.456, 0.406), "STD": (0.229, 0.224, 0.225)}
    template = backbones.templates(TEMPLATE_SET)
    return build(kind, section["MODEL"], section["WEIGHTS"], class_names=CLASS_NAMES,
                 templates=template, device="cpu", section=section)


def words_of(name: str, theirs: str) -> list[str]:
    return [*BACKBONE[METHODS.signature(name).needs], *pairs_of(theirs, METHODS_OF_OURS[name])]


@pytest.mark.parametrize("name", METHODS_OF_OURS)
def test_online_tta_gives_what_a_plain_loop_gives(in_online_tta, trace, name):
    taken = {"source", "tent", "rmt", "memo", "tpt", "sar"}
    theirs = f"tta_apm_{name}" if name in taken else name
    in_online_tta("MODEL.ADAPTATION", theirs, *words_of(name, theirs), "TEST.BATCH_SIZE", "8",
                  images=16)
    method = ours(name, METHODS_OF_OURS[name])
    again = [method(batch).argmax(1) for batch in trace.batches]
    assert [len(batch) for batch in trace.batches] == [8, 8, 8, 8]
    assert trace.predictions == torch.cat(again).tolist()


@pytest.mark.parametrize("words", [
    [], ["SETTING", "mixed_domains"], ["SETTING", "correlated"], ["MODEL.EPISODIC", "True"],
    ["MODEL.RESET_AFTER_NUM_UPDATES", "2"], ["TEST.BATCH_SIZE", "1", "TEST.WINDOW_LENGTH", "4"],
    ["TEST.BATCH_SIZE", "16"]], ids=" ".join)
def test_the_hosts_own_tent_beside_ours(in_online_tta, words):
    same = [*NETWORK, "OPTIM.LR", "0.01", *words]
    theirs = in_online_tta("MODEL.ADAPTATION", "tent", *same)
    mine = in_online_tta("MODEL.ADAPTATION", "tta_apm_tent", "TTA_APM_TENT.LR", "0.01", *same)
    assert mine == theirs and len(mine) >= 1


@pytest.mark.parametrize("name", ["norm", "tta_apm_rmt", "tta_apm_tent"])
def test_single_images_run_in_online_tta(in_online_tta, trace, name):
    in_online_tta("MODEL.ADAPTATION", name, *words_of(name.removeprefix("tta_apm_"), name),
                  "TEST.BATCH_SIZE", "1", images=3)
    assert [len(batch) for batch in trace.batches] == [1] * 6


@pytest.mark.parametrize("name", METHODS_OF_OURS)
def test_ttab_gives_what_a_plain_loop_gives(clones, data, trace, capfd, name):
    theirs = f"tta_apm_{name}" if name in {"tent", "memo", "ttt", "sar", "rmt"} else name
    if name == "rmt":
        theirs = name
    code = cli.main(["host", "ttab", "--repo", str(clones["ttab"]), "--", "--device", "cpu",
                     "--data_path", str(data), "--data_size", "16", "--batch_size", "8",
                     "--num_cpus", "0", "--job_id", str(data / "jobs"), "--root_path",
                     str(data / "logs"), "--data_names", "cifar10_c_deterministic-contrast-5",
                     "--seed", "1", "--model_adaptation_method", theirs, *words_of(name, theirs)])
    assert code == 0, capfd.readouterr().err[-2000:]
    method = ours(name, METHODS_OF_OURS[name])
    again = [method(batch).argmax(1) for batch in trace.batches]
    assert len(trace.predictions) == 16
    assert trace.predictions == torch.cat(again).tolist()


THEIRS = ("source", "bntest", "bnalpha", "bnema", "ttaug", "cotta", "rmt", "rotta", "adacontrast",
          "gtta", "lame", "memo", "tent", "eata", "sar", "deyo", "rpl", "roid", "santa")


@pytest.mark.parametrize("name", THEIRS)
def test_online_ttas_methods_adapt_our_networks(clones, digits_source, images, name):
    from tta_apm.interop.hosts.online_tta_methods import OnlineTta
    few = ["TEST.N_AUGMENTATIONS", 2, "SOURCE.NUM_SAMPLES", 32, "RMT.NUM_SAMPLES_WARM_UP", 16]
    method = OnlineTta(backbone_of("classifier"), repo=str(clones["online-tta"]), name=name,
                       options=few, source=digits_source)
    first = method(images[:8])
    assert first.shape == (8, 10) and method.resolved == {"dataset": "cifar10_c", "image_size": 32}
    method(images[8:16])
    method.reset()
    assert torch.equal(method(images[:8]), first)


def test_online_ttas_methods_take_the_size_of_our_images(clones):
    from tta_apm.backbones.classifiers import Classifier
    from tta_apm.interop.hosts.online_tta_methods import OnlineTta
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 8), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 1000))
    classifier = Classifier(net, mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    repo = str(clones["online-tta"])
    method = OnlineTta(classifier, repo=repo, name="cotta", options=["TEST.N_AUGMENTATIONS", 1])
    method(images)
    assert method.adapted.img_size == (224, 224)
    assert method.resolved == {"dataset": "imagenet_c", "image_size": 224}
    method = OnlineTta(classifier, repo=repo, name="cotta", cfg="cfgs/cifar10_c/cotta.yaml")
    with pytest.raises(UserError, match="cifar10_c has 10 classes of 32x32 pixels"):
        method(images)
    with pytest.raises(UserError, match="the host's own CLIP"):
        OnlineTta(classifier, repo=repo, name="tpt")


def test_what_is_not_there_is_told(clones, data, capfd):
    def said(host: str, *words: str) -> str:
        assert cli.main(["host", host, "--repo", str(clones[host]), "--", *words]) == 2
        return capfd.readouterr().err.splitlines()[-1]

    tent = ["--cfg", "cfgs/cifar10_c/tent.yaml"]
    assert "there is no folder nowhere/CIFAR-10-C" in said("online-tta", *tent, "DATA_DIR",
                                                           "nowhere")
    here = [*tent, "DATA_DIR", str(data)]
    assert "did you mean 'CLASSIFIER'?" in said("online-tta", *here, "CLASIFIER.MODEL", "x")
    assert "did you mean 'tent'?" in said("online-tta", *here, "MODEL.ADAPTATION", "tant")
    assert "there is no folder nowhere" in said("ttab", "--device", "cpu", "--data_path", "nowhere")
    assert "did you mean 'APM'?" in said("ttab", "APN.STEPS", "3")
    assert "there is no checkpoint" in said("ttab", "--device", "cpu", "--data_path", str(data),
                                            "--data_names", "cifar10_c_deterministic-contrast-5")
