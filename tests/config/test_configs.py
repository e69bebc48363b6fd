"""Every config of a sweep: it loads, dry-runs in an empty folder, and says what it reproduces."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest

from places import ROOT
from small_methods import NAMES
from tta_apm import cli, config
from tta_apm.bench.plan import missing, plan
from tta_apm.data.streams import domains

CONFIGS = ROOT / "configs"
# Configs of `tta-apm pretrain` have keys of their own.
FILES = [file for file in sorted(CONFIGS.glob("*/*.yaml"))
         if file.stem != "base" and file.parent.name != "pretrain"]
CIFAR = ("cifar10_c", "cifar100_c", "cifar10_1")
IMAGENET = ("imagenet", "imagenet_a", "imagenet_c", "imagenet_r", "imagenet_sketch", "imagenet_v2")
METHODS = ("source", "norm", "tent", "clip_zero_shot", "tpt", "apm")


def name(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def opening(file: Path) -> str:
    """The text of the comment that a file opens with."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in lines).strip()


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_config_plans_its_cells(file, tmp_path):
    cfg = config.load(file, ["OUTPUT_DIR", str(tmp_path / "empty")])
    wanted = domains(cfg.DATASET, cfg.CORRUPTIONS, cfg.SEVERITY)
    cells = plan(cfg)
    assert len({cell.name for cell in cells}) == len(cells) == (
        len(cfg.METHODS) * len(cfg.SEEDS) * len(wanted))
    assert missing(cells, tmp_path / "empty") == cells
    assert not list(tmp_path.iterdir())
    assert opening(file)


@pytest.mark.parametrize("benchmark", [*CIFAR, *IMAGENET])
def test_a_benchmark_of_the_paper_has_a_file_for_each_method_and_one_for_all(benchmark):
    methods = [*METHODS, *(["ttt_mae"] if benchmark in IMAGENET else [])]
    rows = {row.method for row in config.rows(config.load(CONFIGS / benchmark / "all.yaml"))}
    assert rows == set(methods)
    for method in methods:
        cfg = config.load(CONFIGS / benchmark / f"{method}.yaml")
        assert {row.method for row in config.rows(cfg)} == {method}
        assert cfg.DATASET == benchmark
    for file in (CONFIGS / benchmark).glob("*.yaml"):  # one that was copied speaks of another
        first_sentence = re.sub(r"\W", "", re.split(r"\.\s", opening(file))[0])
        assert benchmark.replace("_", "") in first_sentence.lower(), file


def test_the_digits_have_a_row_of_every_method():
    rows = {row.method for row in config.rows(config.load(CONFIGS / "digits_c/all.yaml"))}
    elsewhere = {name for name in NAMES if name.endswith("_surviving")}
    assert rows == set(NAMES) - elsewhere - {"one_sample"}


@pytest.mark.parametrize("benchmark", [
    "digits_c", "cifar10_c", "cifar100_c", "imagenet_c", "imagenet_a", "imagenet_r", "imagenet_v2",
    "imagenet_sketch"])
def test_methods_of_classifiers_have_a_file_that_says_what_is_published(benchmark):
    found = {}
    for file in (CONFIGS / benchmark).glob("*.yaml"):
        if file.stem in ("classifiers", "continual", "reset", "correlated", "mixed_domains"):
            found[file.stem] = {row.method for row in config.rows(config.load(file))}
            told = re.search(r"prints|[Nn]o (published )?(table|figure)|docs/", opening(file))
            assert told, file
    wanted = {"eata", "sar", "deyo", "cotta", "roid", "rotta", "lame", "t3a"}
    assert found and all(wanted <= rows for rows in found.values())
    if benchmark in ("digits_c", "cifar10_c", "cifar100_c", "imagenet_c"):
        assert all({"note", "adacontrast"} <= rows for rows in found.values())
    if benchmark in ("cifar10_c", "cifar100_c", "imagenet_c"):
        assert found.keys() == {"continual", "reset", "correlated", "mixed_domains"}


@pytest.mark.parametrize("benchmark", [*CIFAR, *IMAGENET])
def test_the_defaults_are_the_protocol_of_the_paper(benchmark):
    cfg = config.load(CONFIGS / benchmark / "apm.yaml")
    corrupted = benchmark.endswith("_c")
    assert cfg.SEVERITY == ([5] if corrupted else [0]) and len(cfg.CORRUPTIONS) == 15
    assert cfg.SETTING == "reset_each_domain" and cfg.NUM_IMAGES == -1
    # 80 templates: the ImageNet family's own, which "auto" stands for.
    assert cfg.TEMPLATES == ("auto" if benchmark in IMAGENET else "imagenet")
    assert cfg.APM.STEPS == 20 and cfg.APM.PRESET == "paper"


def test_a_list_of_severities_sweeps_all():
    cfg = config.load(CONFIGS / "imagenet_c/apm.yaml", ["SEVERITY", "[1,2,3,4,5]"])
    assert len(plan(cfg)) == 75


def test_the_command_prints_a_dry_run(tmp_path, capsys):
    assert cli.main(["--cfg", "cfgs/imagenet_c/all.yaml", "--dry-run", "OUTPUT_DIR",
                     str(tmp_path / "empty")]) == cli.OK
    assert "120 cells in" in capsys.readouterr().out and not list(tmp_path.iterdir())
