"""Kinds of backbone: one table, to which another package adds a kind by a file and a line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import tta_apm
from places import ROOT
from tta_apm import cli, config
from tta_apm.backbones.build import KINDS, PACKAGED, Kind, build, find_kind, untrained
from tta_apm.bench.code import closure_files
from tta_apm.errors import UserError
from tta_apm.registry import DATASETS

EXAMPLES = ROOT / "examples"
CFG = ["--cfg", "cfgs/digits_c/quick.yaml", "CORRUPTIONS", "[fog]", "NUM_IMAGES", "40"]
METHODS = ["METHODS", "[source,clip_zero_shot,vote SHARE 1,vote SHARE 0,vote]"]


@pytest.fixture(autouse=True)
def forget_what_plugins_register():
    known = {registry: dict(registry._registered) for registry in (KINDS, DATASETS)}
    yield
    for registry, entries in known.items():
        registry._registered = entries


def test_the_packaged_kinds_are_sections_of_every_config(backbones):
    assert set(PACKAGED) == set(backbones) <= set(KINDS.names())
    cfg = config.load("cfgs/digits_c/quick.yaml")
    for name, kind in PACKAGED.items():
        assert dict(cfg[name.upper()]) == dict(kind.section)


@pytest.mark.parametrize("name", PACKAGED)
def test_the_defaults_of_a_kind_build_it_and_an_untrained_one(name, images):
    section = find_kind(name).section
    classes = dict(class_names=[str(digit) for digit in range(10)], device="cpu")
    for backbone in (build(name, section["MODEL"], section["WEIGHTS"], templates=("a {}",),
                           **classes), untrained(name, section["MODEL"], **classes)):
        assert backbone.kind == name and backbone(images[:2]).shape == (2, 10)


def check_votes(results):
    """With a share of 1 or 0, the vote has the predictions of one network alone."""
    images = tta_apm.load_results(results).images.set_index(["row", "index"]).sort_index()
    for row, alone in (("vote SHARE 1", "source"), ("vote SHARE 0", "clip_zero_shot")):
        assert (images.prediction[row] == images.prediction[alone]).all()
        assert np.allclose(images.confidence[row], images.confidence[alone], atol=1e-6)
    assert (images.prediction["vote"] != images.prediction["source"]).any()
    assert (images.prediction["vote"] != images.prediction["clip_zero_shot"]).any()


@pytest.mark.slow
def test_a_kind_a_method_and_a_data_set_join_a_sweep_as_plugins(tmp_path):
    plugins = f"[{EXAMPLES / 'my_backbone.py'},{EXAMPLES / 'my_dataset.py'}]"
    words = [*CFG, *METHODS, "PLUGINS", plugins, "OUTPUT_DIR", str(tmp_path)]
    assert cli.main([*words, "DATASET", "negative_digits", "CORRUPT", "true"]) == 0
    check_votes(tmp_path)
    dataset = DATASETS.load("negative_digits")(data_dir="", frost_dir=None)
    assert np.array_equal(dataset.pixels, 255 - tta_apm.load_dataset("digits").pixels)
    cells = tta_apm.load_results(tmp_path).cells
    assert set(cells.dataset) == {"negative_digits"} and set(cells.corruption) == {"fog"}
    names = {file.name for file in closure_files(find_kind("pair").module)}  # a cell's code
    assert {"my_backbone.py", "clip.py", "classifiers.py"} <= names
    backbone = untrained("pair", "timm/digits_resnet", class_names=["one", "two"], device="cpu")
    assert [logits.shape for logits in backbone(torch.rand(3, 3, 32, 32))] == [(3, 2)] * 2


@pytest.mark.slow
def test_an_entry_point_does_so_too(tmp_path):
    """An installed package: a module, and a folder of metadata with its entry points."""
    site, results = tmp_path / "site", tmp_path / "results"
    (site / "stranger-1.dist-info").mkdir(parents=True)
    (site / "stranger-1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (site / "stranger-1.dist-info/entry_points.txt").write_text(
        "[tta_apm.backbone_kinds]\npair = strange:PAIR\n[tta_apm.methods]\nvote = strange:Vote\n")
    text = (EXAMPLES / "my_backbone.py").read_text()
    for line in ('KINDS.register("pair")(PAIR)\n', '@register("vote")\n'):
        assert line in text
        text = text.replace(line, "")
    (site / "strange.py").write_text(text)
    script = (f"import sys; sys.path.insert(0, {str(site)!r}); from tta_apm import cli, config; "
              "assert 'PAIR' not in config.load('cfgs/digits_c/quick.yaml'); "
              "assert 'strange' not in sys.modules; sys.exit(cli.main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", script, *CFG, *METHODS, "OUTPUT_DIR", results],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_votes(results)


@pytest.mark.parametrize("kind", ["not a kind", Kind("nowhere", {"MODEL": ""})])
def test_what_is_no_kind_is_told(kind):
    KINDS.register("odd")(kind)
    with pytest.raises(UserError, match="'odd': its entry point must be a Kind"):
        build("odd", "", "", class_names=["a"], templates=(), device="cpu")


def test_a_key_of_anothers_section_is_checked(tmp_path):
    KINDS.register("odd")(Kind("nowhere", {"MODEL": "", "WEIGHTS": "", "DEPTH": 3}))
    file = "cfgs/digits_c/quick.yaml"
    assert config.load(file, ["ODD.DEPTH", "4"]).ODD.DEPTH == 4
    with pytest.raises(UserError, match="ODD.DEPTH takes a whole number, not 'deep'"):
        config.load(file, ["ODD.DEPTH", "deep"])
    with pytest.raises(UserError, match="unknown key 'ODD.DEPHT': did you mean 'DEPTH'"):
        config.load(file, ["ODD.DEPHT", "4"])
