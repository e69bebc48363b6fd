"""Sweeps: cells, resume, other settings and orders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeps import cells
from tta_apm import cli
from tta_apm.bench.job import find_dataset
from tta_apm.bench.records import load_predictions, load_record

pytestmark = pytest.mark.slow  # sweeps, processes or training


def test_a_sweep_leaves_cells_config_and_tables(sweep):
    code, folder, printed = sweep("[source, clip_zero_shot]")
    assert code == cli.OK
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells", "config.yaml", "table.csv", "table.md", "table.tex"]
    assert "BATCH_SIZE: 16" in (folder / "config.yaml").read_text()
    assert len(cells(folder)) == 4
    record_file = folder / "cells/reset_each_domain-shuffled/source/fog-5-seed42.json"
    record = load_record(record_file)
    predictions = load_predictions(record_file, record)
    assert record.num_images == len(predictions.index) == 30
    assert record.num_correct == predictions.correct().sum()
    assert sorted(predictions.index) == list(range(30))
    assert record.weights.startswith("digits_resnet.safetensors")
    assert record.seconds > 0
    assert record.gflops_per_image is None or record.gflops_per_image > 0  # None: torch 2.2
    assert "source  " in printed.out and "fog-5" in printed.out
    header, *lines = (folder / "table.csv").read_text().splitlines()
    assert header.startswith("method,fog,contrast,mean")
    assert [line.split(",")[0] for line in lines] == ["source", "clip_zero_shot"]


def test_every_method_sees_the_same_images(sweep):
    _, folder, _ = sweep("[source, clip_zero_shot]")
    hashes = {load_record(file).images_hash for file in folder.rglob("*/fog-5*.json")}
    assert len(hashes) == 1


def test_a_second_run_runs_nothing_and_a_third_only_what_is_new(sweep):
    _, folder, first = sweep("source")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.npz")}
    code, _, second = sweep("source")
    assert code == cli.OK and "cells to run" not in second.out
    code, _, third = sweep("[source, norm]")
    assert "2 of 4 cells to run" in third.out
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert second.out.splitlines()[-3:] == first.out.splitlines()[-3:]


def test_a_dry_run_lists_and_writes_nothing(sweep):
    code, folder, printed = sweep("[source, tent]", flags=("--dry-run",))
    assert code == cli.OK and not folder.exists()
    assert "would run  reset_each_domain-shuffled/tent/fog-5-seed42" in printed.out
    sweep("source")
    _, _, printed = sweep("[source, tent]", flags=("--dry-run",))
    assert "2 are there, 2 would run" in printed.out


def test_same_seed_same_bytes_other_seed_other_order(sweep):
    _, first, _ = sweep("[tent, 'apm HIDDEN [16] STEPS 2 IMAGE_SIZE 32 PATCH 8 CODE 16']")
    _, again, _ = sweep("[tent, 'apm HIDDEN [16] STEPS 2 IMAGE_SIZE 32 PATCH 8 CODE 16']",
                        folder="again")
    assert len(cells(first)) == 4 and cells(first) == cells(again)
    _, other, _ = sweep("tent", "SEEDS", "[1,2]", folder="other")
    assert len(set(cells(other).values())) == 4


@pytest.mark.parametrize("size", ["1", "7", "64"])
def test_batch_size_changes_no_episodic_prediction(sweep, size):
    small = "HIDDEN [32,16] STEPS 3 LR 0.003 IMAGE_SIZE 32 PATCH 8 CODE 16"
    methods = f"['apm {small}', source, clip_zero_shot]"
    _, reference, _ = sweep(methods)
    _, folder, _ = sweep(methods, "BATCH_SIZE", size, folder=size)
    for file in reference.rglob("*.json"):
        twin = folder / file.relative_to(reference)
        ours, theirs = (load_predictions(path, load_record(path)) for path in (file, twin))
        assert (ours.index == theirs.index).all()
        assert (ours.prediction == theirs.prediction).all()


def test_continual_carries_state_over_and_resumes_to_the_same(sweep):
    _, reset, _ = sweep("tent")
    code, folder, _ = sweep("tent", "SETTING", "continual", folder="continual")
    assert code == cli.OK
    whole = cells(folder)
    by_name = {Path(name).name: content for name, content in whole.items()}
    independent = {Path(name).name: content for name, content in cells(reset).items()}
    assert by_name["fog-5-seed42.npz"] == independent["fog-5-seed42.npz"]
    assert by_name["contrast-5-seed42.npz"] != independent["contrast-5-seed42.npz"]
    for file in folder.rglob("contrast*"):
        file.unlink()
    sweep("tent", "SETTING", "continual", folder="continual")
    assert cells(folder) == whole


def test_cells_of_another_config_are_refused_and_redone_on_demand(sweep):
    _, folder, _ = sweep("tent")
    before = cells(folder)
    code, _, printed = sweep("tent", "TENT.LR", "0.5")
    assert code == cli.BAD_INPUT and cells(folder) == before
    assert "LR 0.001, now 0.5" in printed.err and "--redo" in printed.err
    assert "tent/fog-5-seed42" in printed.err
    code, _, _ = sweep("tent", "TENT.LR", "0.5", flags=("--redo",))
    assert code == cli.OK and cells(folder) != before
    assert cli.main(["table", str(folder)]) == cli.OK


def test_cells_of_other_code_are_refused(sweep):
    _, folder, _ = sweep("source")
    file = next(folder.rglob("fog*.json"))
    content = json.loads(file.read_text())
    content["identity"]["code"] = "of yesterday"
    file.write_text(json.dumps(content))
    code, _, printed = sweep("source")
    assert code == cli.BAD_INPUT and "with other code" in printed.err


def test_rows_that_differ_in_a_sign_have_files_of_their_own(sweep):
    """-1 and 1, 1e-3 and 1e+3: they would overwrite each other's cells."""
    rows = ["apm TRIGGER vit TRIGGER_LAYER -1", "apm TRIGGER vit TRIGGER_LAYER 1",
            "tent LR 1e-3", "tent LR 1e+3"]
    code, _, printed = sweep(str(rows), flags=("--dry-run",))
    assert code == cli.OK
    names = [line.split()[-1] for line in printed.out.splitlines() if "would run " in line]
    assert len(names) == len(set(names)) == 8


def test_the_first_method_is_built_once_and_the_source_is_read_once(sweep, monkeypatch):
    """RMT's constructor reads the training set and warms up on it: minutes."""
    from tta_apm_baselines.rmt import Rmt

    from tta_apm.data.dataset import Clean
    built, read = [], []
    init, source = Rmt.__init__, Clean.source
    monkeypatch.setattr(Rmt, "__init__", lambda self, *args, **keywords: (
        built.append(keywords["seed"]), init(self, *args, **keywords))[0])
    monkeypatch.setattr(Clean, "source", lambda self: (read.append(self), source(self))[1])
    small = "rmt NUM_WARM_UP 32 WARM_UP_BATCH_SIZE 32"
    code, folder, _ = sweep(f"['{small}']", "SEEDS", "[3,4]")
    assert code == cli.OK and built == [3, 4] and len(read) == 1
    built.clear()
    code, again, _ = sweep(f"[source, '{small}']", "SEEDS", "[3,4]", folder="again")
    assert built == [3, 4] and len(read) == 2
    assert cells(folder).items() <= cells(again).items()


def test_a_gpu_holds_one_kind_of_backbone_at_a_time(tmp_path, monkeypatch):
    """And those of the rows that run side by side."""
    import torch

    from tta_apm import config
    from tta_apm.bench import builder as module
    at, limit = {}, 1

    class Net(torch.nn.Module):
        def __init__(self, kind, device):
            super().__init__()
            self.kind = kind
            self.to(device)

        def to(self, device):
            at[self.kind] = torch.device(device).type
            assert list(at.values()).count("cuda") <= limit
            return self

    monkeypatch.setattr(module, "build", lambda kind, *args, device, **rest: Net(kind, device))
    cfg = config.load("cfgs/digits_c/all.yaml")
    loaded, _ = find_dataset(cfg)
    builder = module.Builder(cfg, loaded, torch.device("cuda"))
    for kind in ("clip", "classifier", "mae", "clip", "clip", "classifier"):
        assert builder.backbone(kind) is builder.backbones[kind]
        assert {name for name, device in at.items() if device == "cuda"} == {kind}
    limit = 2
    builder.backbone("clip", beside=["mae"])
    assert {name for name, device in at.items() if device == "cuda"} == {"clip", "mae"}
    at.clear()
    builder = module.Builder(cfg, loaded, torch.device("cpu"))
    builder.backbone("mae")
    builder.backbone("clip")
    assert at == {"mae": "cpu", "clip": "cpu"}


@pytest.mark.parametrize("setting, order", [
    ("gradual", "shuffled"), ("mixed_domains", "shuffled"), ("continual", "dirichlet"),
    ("mixed_domains", "sorted")])
def test_settings_fill_every_cell_with_the_same_images(sweep, setting, order):
    _, reference, _ = sweep("[source]", "SEVERITY", "[1,5]")
    code, folder, _ = sweep("[source, tent]", "SEVERITY", "[1,5]", "SETTING", setting, "ORDER",
                            order, folder="other")
    assert code == cli.OK
    files = sorted(folder.rglob("tent/*.json"))
    assert len(files) == 4
    twins = {file.name: load_record(file) for file in reference.rglob("*.json")}
    for file in files:
        record = load_record(file)
        assert record.images_hash == twins[file.name].images_hash
        assert record.setting == setting and record.order.startswith(order)
        visits = 2 if setting == "gradual" and record.severity == 1 else 1
        assert record.num_images == 30 * visits


def test_settings_stand_beside_each_other_in_one_table(sweep):
    sweep("tent")
    code, folder, _ = sweep("tent", "SETTING", "mixed_domains")
    assert code == cli.OK
    lines = (folder / "table.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["method", "tent", "tent"]
