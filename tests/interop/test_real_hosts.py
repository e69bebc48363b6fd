"""The real hosts, with the commands of docs/hosts: methods have the same predictions as here.

The hosts' archives and real images are beside the project; without them, the tests skip. The code
that runs them is benchmarks/hosts.py, which makes the tables of docs/hosts/checked.md.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file

from places import ROOT, SHARED
from tta_apm import cli
from tta_apm.errors import UserError
from tta_apm.interop.hosts import backbones, online_tta, ttab
from tta_apm.registry import DATASETS
from tta_apm.report.results import load_results

sys.path.append(str(ROOT / "benchmarks"))
import hosts  # noqa: E402
import in_hosts  # noqa: E402

MISSING = sorted(package for module, package in {**online_tta.PACKAGES, **ttab.PACKAGES}.items()
                 if find_spec(module) is None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "hosts").is_dir() or not in_hosts.WEIGHTS.is_file(),
                       reason="no hosts beside the project"),
    pytest.mark.skipif(bool(MISSING), reason=f"pip install -e .[hosts]: the hosts need {MISSING}")]
PAGES = ROOT / "docs" / "hosts"
NETWORK = in_hosts.words_of("classifier", in_hosts.settings()["classifier"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return in_hosts.make_data(SHARED / "data", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clones")
    return {host: in_hosts.unpack(SHARED / "hosts", host, folder) for host in in_hosts.ARCHIVES}


# Registered in these tests only.
IMAGES_OF_A_HOST = DATASETS._registered.pop("images_of_a_host")


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    monkeypatch.setitem(DATASETS._registered, "images_of_a_host", IMAGES_OF_A_HOST)
    with in_hosts.small_world():
        yield


# The same predictions

@pytest.mark.parametrize("host", in_hosts.ARCHIVES)
def test_a_host_gives_what_our_sweep_gives(host, clones, data, tmp_path):
    lines = hosts.compare(host, clones[host], data, tmp_path, images=8, batch_size=4)
    assert [name for name, *_ in lines] == list(in_hosts.OURS)
    assert {name for name, against, *_ in lines if against == "our sweep"} == set(hosts.ALONE)
    for name, _, equal, total in lines:
        assert equal == total == (16 if host == "online-tta" else 8), name


@pytest.mark.parametrize("host", in_hosts.ARCHIVES)
@pytest.mark.parametrize("batch_size, images, names", [
    (200, 200, ["source", "norm", "tent"]), (16, 18, ["source", "tent", "sar"]),
    (1, 3, ["source", "norm", "rmt", "tent"])], ids=["200", "16", "1"])
def test_batches_of(host, batch_size, images, names, clones, data, tmp_path):
    """18 images in batches of 16 leave a batch of two; batches of 1 are single images."""
    with in_hosts.traced() as trace:
        lines = hosts.compare(host, clones[host], data, tmp_path, images=images, names=names,
                              batch_size=batch_size)
    sizes = {len(batch) for batch in trace.batches}
    assert sizes == {batch_size, images % batch_size or batch_size}
    assert all(equal == total for *_, equal, total in lines)


@pytest.mark.parametrize("setting", hosts.SETTINGS)
def test_the_hosts_own_tent_beside_ours(setting, clones, data):
    theirs, mine = hosts.two_tents(clones["online-tta"], data, hosts.SETTINGS[setting], images=12)
    assert mine == theirs and len(mine) >= 1


# The tables of the docs

def test_the_docs_have_the_table_of_equal_predictions():
    """The table of benchmarks/hosts.py has each host and method, with all predictions equal."""
    page = (PAGES / "checked.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (online-tta|ttab) \| (\w+) \| (our sweep|a plain loop) \| (.*) \|$",
                       page, re.M)
    assert [line[:3] for line in lines] == [
        (host, name, "our sweep" if name in hosts.ALONE else "a plain loop")
        for host in in_hosts.ARCHIVES for name in in_hosts.OURS]
    once = re.findall(r"^\| benchmark-tta \| (\w+) \| .* \| (\d+) of (\d+) \|$", page, re.M)
    assert [name for name, *_ in once] == list(in_hosts.OURS)
    assert all(equal == total for _, equal, total in once)
    for *_, counts in lines:
        numbers = re.findall(r"(\d+) of (\d+)", counts)
        assert len(numbers) == 3 and all(equal == total for equal, total in numbers)


def test_the_docs_have_the_table_of_online_ttas_methods(clones):
    lines = hosts.table_of_theirs(clones["online-tta"])
    assert len(lines) == 22
    table = hosts.pipe(["method", "its config", "in our sweeps"], lines)
    assert table in (PAGES / "checked.md").read_text(encoding="utf-8")


# The hosts' methods in sweeps

def test_a_method_of_the_host_is_reset_to_what_it_was(clones, digits_source, images):
    from tta_apm.interop.hosts.online_tta_methods import OnlineTta
    for name in ("cotta", "rmt", "eata"):
        method = OnlineTta(in_hosts.backbone_of("classifier"), repo=str(clones["online-tta"]),
                           name=name, options=hosts.FEW, source=digits_source)
        first = method(images[:8])
        assert method.resolved == {"dataset": "cifar10_c", "image_size": 32}
        method(images[8:16])
        method.reset()
        assert torch.equal(method(images[:8]), first), name


def test_vte_without_augmentations_is_zero_shot(clones, digits_clip, images):
    from tta_apm.backbones.image_tower import suited
    from tta_apm.interop.hosts.online_tta_methods import OnlineTta
    method = OnlineTta(suited(digits_clip, "classifier"), repo=str(clones["online-tta"]),
                       name="vte", options=["TEST.N_AUGMENTATIONS", 1, "TPT.SELECTION_P", 1.0])
    # The host's views are 8-bit pictures.
    seen = (images[:4] * 255).to(torch.uint8) / 255
    torch.testing.assert_close(method(images[:4]), digits_clip(seen), atol=1e-3, rtol=1e-4)


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
    for name, said in (("tpt", "the host's own CLIP"), ("VTE", "name BACKBONE clip in its row"),
                       ("tant", "did you mean 'tent'?")):
        with pytest.raises(UserError, match=re.escape(said)):
            OnlineTta(classifier, repo=repo, name=name)


def test_a_row_that_cannot_be_built_fails_alone(clones, tmp_path, capsys):
    rows = "[source, online_tta NAME tpt, online_tta NAME eata OPTIONS [EATA.FISHER_ALPHA,0.0]]"
    assert cli.main(["--cfg", "cfgs/digits_c/source.yaml", "PLUGINS",
                     "tta_apm.interop.hosts.online_tta_methods", "ONLINE_TTA.REPO",
                     str(clones["online-tta"]), "METHODS", rows, "CORRUPTIONS", "[fog]",
                     "NUM_IMAGES", "16", "BATCH_SIZE", "8", "OUTPUT_DIR", str(tmp_path)]) == 1
    assert "online_tta NAME tpt fails, the other rows go on: online_tta: tpt learns" in \
        capsys.readouterr().err
    records = {result.record.method: result.record for result in load_results(tmp_path)}
    assert records.keys() == {"source", "online_tta"}
    assert records["online_tta"].identity["files"]["ONLINE_TTA.REPO"]


# Missing files and other errors

def test_what_is_not_there_is_told(clones, data, tmp_path, capfd):
    def said(host: str, *words: str) -> str:
        assert cli.main(["host", host, "--repo", str(clones[host]), "--", *words]) == 2
        return capfd.readouterr().err.splitlines()[-1]

    tent = ["--cfg", "cfgs/cifar10_c/tent.yaml"]
    assert "there is no folder nowhere in" in said("online-tta", *tent, "DATA_DIR", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "there is no folder" in said("online-tta", *tent, "DATA_DIR", str(tmp_path / "empty"))
    here = [*tent, "DATA_DIR", str(data)]
    assert "there is no file" in said("online-tta", *here) and "shot_noise.npy" in said(
        "online-tta", *here)
    assert "did you mean 'CLASSIFIER'?" in said("online-tta", *here, "CLASIFIER.MODEL", "x")
    assert "did you mean 'tent'?" in said("online-tta", *here, "MODEL.ADAPTATION", "tant")
    assert "the following arguments are required: --cfg" in said("online-tta", "--cgf", "x")
    assert "cannot read the config cfgs/none.yaml" in said("online-tta", "--cfg", "cfgs/none.yaml")
    assert "there is no folder nowhere" in said("ttab", "--device", "cpu", "--data_path", "nowhere")
    assert "did you mean 'APM'?" in said("ttab", "APN.STEPS", "3")
    there = ["--device", "cpu", "--data_path", str(data)]
    assert "did you mean '--batch_size'?" in said("ttab", *there, "--batch_sise", "3")
    assert "invalid int value: 'x'" in said("ttab", *there, "--batch_size", "x")
    assert "did you mean 'apm'?" in said("ttab", *there, "--model_adaptation_method", "apn")
    contrast = ["--data_names", "cifar10_c_deterministic-contrast-5"]
    assert "there is no checkpoint" in said("ttab", *there, *contrast)
    assert "cifar10_c/fog.npy" in said("ttab", *there, "--data_names",
                                       "cifar10_c_deterministic-fog-5")
    assert "`tta-apm data make cifar100_python`" in said("ttab", *there, "--data_names",
                                                         "cifar100_c_deterministic-fog-5")


def test_methods_that_learn_prompts_ask_for_the_text_tower(clones, data, digits_clip, tmp_path,
                                                           capfd):
    """The host deletes its CLIP's text tower by default."""
    save_file(digits_clip.model.state_dict(), tmp_path / "clip.safetensors")
    words = ["MODEL.ADAPTATION", "tta_apm_tpt", "TTA_APM_TPT.NUM_VIEWS", "16", "MODEL.USE_CLIP",
             "True", "MODEL.ARCH", "digits_clip", "CLIP.PRECISION", "fp32", "MODEL.WEIGHTS",
             str(tmp_path / "clip.safetensors"), "TEST.BATCH_SIZE", "2"]
    with pytest.raises(UserError, match="failed"):
        in_hosts.in_online_tta(clones["online-tta"], data, *words, images=2)
    assert "add CLIP.FREEZE_TEXT_ENCODER False to the command" in capfd.readouterr().err
    in_hosts.in_online_tta(clones["online-tta"], data, *words, "CLIP.FREEZE_TEXT_ENCODER", "False",
                           images=2)


def test_classes_that_have_no_names_are_told():
    with pytest.raises(UserError, match="no class names for 'domainnet126' here"):
        backbones.own_backbone("clip", {"MODEL": "digits_clip", "WEIGHTS": "x"},
                               dataset="domainnet126", num_classes=126, device="cpu")


# The commands of the docs

def commands(page: str) -> list[list[str]]:
    """The commands of a page that start a host on the small CIFAR-10-C."""
    text = re.sub(r"\\\n\s*", "", (PAGES / page).read_text(encoding="utf-8"))
    return [shlex.split(line) for line in text.splitlines()
            if line.startswith("tta-apm host") and "CLASSIFIER.MODEL" in line]


@pytest.mark.parametrize("host, page, name", [
    ("online-tta", "online-tta.md", "test-time-adaptation"),
    ("ttab", "ttab.md", "ttab")])
def test_the_commands_of_the_docs_run_as_written(host, page, name, data, tmp_path, monkeypatch):
    """Run in a folder with the clone, DATA, the weights and this project."""
    found = commands(page)
    assert found
    in_hosts.unpack(SHARED / "hosts", host, tmp_path).rename(tmp_path / name)
    weights = in_hosts.WEIGHTS
    for link, target in {"DATA": data, "tta-apm": ROOT, weights.name: weights}.items():
        (tmp_path / link).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    for words in found:
        with in_hosts.traced() as trace:
            in_hosts.run(words[1:])
        assert len(trace.predictions) >= 200
