"""Sweeps: cells, resume, kills, what is refused and what fails by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tta_apm import cli
from tta_apm.bench.job import find_dataset
from tta_apm.bench.records import load_predictions, load_record
from tta_apm.registry import METHODS

pytestmark = pytest.mark.slow  # sweeps, processes or training

SMALL = ["NUM_IMAGES", "30", "BATCH_SIZE", "16"]


@pytest.fixture
def sweep(tmp_path, capsys):
    """Run a sweep into a folder of its own; gives exit code, folder and what was printed."""
    def sweep(methods: str, *overrides: str, folder: str = "results", flags: tuple = ()):
        file = tmp_path / "sweep.yaml"
        file.write_text("CORRUPTIONS: [fog, contrast]\n")
        keys = dict(zip(SMALL[::2], SMALL[1::2])) | dict(zip(overrides[::2], overrides[1::2]))
        code = cli.main(["--cfg", str(file), *flags, "METHODS", methods, "OUTPUT_DIR",
                         str(tmp_path / folder), *(word for item in keys.items() for word in item)])
        return code, tmp_path / folder, capsys.readouterr()
    return sweep


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write a text to a plugin's file, whose methods are forgotten after the test."""
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))

    def plugin(text: str) -> str:
        file = tmp_path / "plugin_methods.py"
        file.write_text(textwrap.dedent(text))
        return str(file)
    return plugin


def cells(folder: Path) -> dict[str, bytes]:
    """The predictions of every cell."""
    return {str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*.npz")}


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


def test_a_cell_that_cannot_be_redone_is_missing_not_the_old_one(sweep):
    """Its old record is of another config: the table must not show it among the new rows."""
    _, folder, _ = sweep("[source, tent]")
    code, _, printed = sweep("[source, tent]", "BATCH_SIZE", "1", flags=("--redo",))
    assert code == cli.FAILED_CELLS and "are missing in the table" in printed.err
    assert {Path(name).parent.name for name in cells(folder)} == {"source"}
    assert not list(folder.rglob("tent/*.json"))


def test_cells_of_other_code_are_refused(sweep):
    _, folder, _ = sweep("source")
    file = next(folder.rglob("fog*.json"))
    content = json.loads(file.read_text())
    content["identity"]["code"] = "of yesterday"
    file.write_text(json.dumps(content))
    code, _, printed = sweep("source")
    assert code == cli.BAD_INPUT and "with other code" in printed.err


@pytest.mark.parametrize("damage, message", [
    (lambda folder: truncate(next(folder.rglob("fog*.json"))), "is incomplete or not a record"),
    (lambda folder: truncate(next(folder.rglob("fog*.npz"))), "is corrupt or incomplete"),
    (lambda folder: (folder / "cells/notes.txt").write_text("mine"), "is not a file of a sweep"),
    (lambda folder: (folder / "cells/foreign.json").write_text("{}"), "or not a record of ours"),
])
def test_damaged_and_foreign_files_are_named(sweep, damage, message):
    _, folder, _ = sweep("source")
    damage(folder)
    before = cells(folder)
    code, _, printed = sweep("source")
    assert code == cli.BAD_INPUT and message in printed.err and str(folder) in printed.err
    assert cells(folder) == before
    assert cli.main(["table", str(folder)]) == cli.BAD_INPUT


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def test_rows_that_differ_in_a_sign_have_files_of_their_own(sweep):
    """-1 and 1, 1e-3 and 1e+3: they would overwrite each other's cells."""
    rows = ["apm TRIGGER vit TRIGGER_LAYER -1", "apm TRIGGER vit TRIGGER_LAYER 1",
            "tent LR 1e-3", "tent LR 1e+3"]
    code, _, printed = sweep(str(rows), flags=("--dry-run",))
    assert code == cli.OK
    names = [line.split()[-1] for line in printed.out.splitlines() if "would run " in line]
    assert len(names) == len(set(names)) == 8


BROKEN = """
    import torch
    from tta_apm.method import Method, register

    class Broken(Method):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
        def reset(self):
            pass

    @register("gives_nan")
    class GivesNan(Broken):
        def forward(self, images):
            logits = self.backbone(images)
            return torch.where(images.mean() > 0.3, logits / 0 * 0, logits)

    @register("wrong_shape")
    class WrongShape(Broken):
        def forward(self, images):
            return self.backbone(images)[:, :3]

    @register("raises")
    class Raises(Broken):
        def forward(self, images):
            raise KeyError("of a stranger")
"""


def test_a_broken_method_fails_by_name_and_the_sweep_goes_on(sweep, plugin):
    code, folder, printed = sweep("[wrong_shape, raises, gives_nan, source]",
                                  "PLUGINS", plugin(BROKEN))
    assert code == cli.FAILED_CELLS
    assert "[2, 3] instead of logits [2, 10]" in printed.out or "[16, 3]" in printed.out
    assert "KeyError: 'of a stranger' (plugin_methods.py:" in printed.out
    assert "not finite for" in printed.out
    assert "reset_each_domain-shuffled/wrong_shape/fog-5-seed42" in printed.err
    assert len(list(folder.rglob("source/*.json"))) == 2
    table = (folder / "table.md").read_text()
    assert "| source" in table and "| wrong_shape" not in table
    assert "METHODS without any cell yet: wrong_shape, raises, gives_nan" in table


@pytest.mark.parametrize("setting", ["reset_each_domain", "gradual"])
def test_where_all_cells_fail_it_says_so(sweep, plugin, setting):
    code, folder, printed = sweep("raises", "PLUGINS", plugin(BROKEN), "SETTING", setting,
                                  "SEVERITY", "[1,5]")
    assert code == cli.FAILED_CELLS
    assert "4 of 4 cells FAILED" in printed.err
    assert not (folder / "table.md").exists()


MOODY = """
    from tta_apm.method import Method, register

    @register("moody")
    class Moody(Method):
        built = 0

        def __init__(self, backbone, *, at_once=True, seed=0, source=None):
            super().__init__()
            type(self).built += 1
            if at_once or self.built > 1:
                raise TypeError("not today")
            self.backbone = backbone

        def forward(self, images):
            return self.backbone(images)

        def reset(self):
            pass
"""


def test_whatever_a_constructor_raises_is_one_sentence(sweep, plugin):
    said = "method 'moody' cannot be built: TypeError: not today (plugin_methods.py:"
    code, folder, printed = sweep("[source, moody]", "PLUGINS", plugin(MOODY))
    assert code == cli.FAILED_CELLS and len(cells(folder)) == 2  # it fails alone
    assert f"moody fails, the other rows go on: {said}" in printed.err
    code, folder, printed = sweep("[moody]", "PLUGINS", plugin(MOODY), folder="alone")
    assert code == cli.BAD_INPUT and not cells(folder) and said in printed.err


def test_a_method_that_can_be_built_once_only_fails_by_name(sweep, plugin):
    """As where memory runs short after an hour: the other rows go on."""
    code, folder, printed = sweep("['moody AT_ONCE false', source]", "PLUGINS", plugin(MOODY),
                                  "SEEDS", "[1,2]")
    assert code == cli.FAILED_CELLS
    assert "FAILED: method 'moody AT_ONCE false' cannot be built: TypeError: not" in printed.out
    assert "2 of 8 cells FAILED" in printed.err
    assert len(cells(folder)) == 6


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


def test_a_folder_without_frost_pictures_is_told_before_anything_runs(sweep, tmp_path):
    code, folder, printed = sweep("source", "CORRUPTIONS", "[fog,frost]", "FROST_DIR",
                                  str(tmp_path))
    assert code == cli.BAD_INPUT and f"FROST_DIR '{tmp_path}' lacks frost1.png" in printed.err
    assert "left empty, another source of frost" in printed.err
    assert not list(folder.rglob("*"))  # the folder itself may be there, which was locked
    code, _, _ = sweep("source", "CORRUPTIONS", "[frost]", "FROST_DIR", "")
    assert code == cli.OK
    code, _, _ = sweep("source", "CORRUPTIONS", "[fog]", "FROST_DIR", str(tmp_path))
    assert code == cli.OK


def test_a_method_that_cannot_be_built_is_told_at_once_and_fails_alone(sweep):
    code, folder, printed = sweep("[source, 'tent STEPS 0']")
    assert code == cli.FAILED_CELLS
    assert "tent STEPS 0 fails, the other rows go on: tent: steps 0 must" in printed.err
    assert len(cells(folder)) == 2
    code, folder, printed = sweep("'tent STEPS 0'", folder="alone")
    assert code == cli.BAD_INPUT and "steps 0" in printed.err
    assert not cells(folder)


def test_more_images_than_there_are(sweep):
    code, _, printed = sweep("source", "NUM_IMAGES", "100000")
    assert code == cli.BAD_INPUT and "digits_c has 597 images" in printed.err


def test_a_folder_that_cannot_be_written(tmp_path, sweep):
    (tmp_path / "occupied").write_text("a file")
    code, _, printed = sweep("source", folder="occupied/results")
    assert code == cli.BAD_INPUT and "cannot write to OUTPUT_DIR" in printed.err


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(sweep, monkeypatch):
    from tta_apm.bench import sweep as module
    whole = module.save_cell

    def save_then_interrupt(*arguments):
        whole(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_cell", save_then_interrupt)
    code, folder, printed = sweep("source")
    assert code == cli.INTERRUPTED
    assert "1 of 2 cells are done" in printed.err and "goes on from there" in printed.err
    monkeypatch.undo()
    code, _, printed = sweep("source")
    assert code == cli.OK and "1 of 2 cells to run" in printed.out


def test_an_interrupt_of_a_redo_counts_what_was_redone(sweep, monkeypatch):
    from tta_apm.bench import sweep as module
    whole = module.save_cell
    sweep("tent")

    def save_then_interrupt(*arguments):
        whole(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_cell", save_then_interrupt)
    code, _, printed = sweep("tent", "TENT.LR", "0.5", flags=("--redo",))
    assert code == cli.INTERRUPTED
    assert "1 of 2 cells are done" in printed.err


KILLS = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch, timm, open_clip  # imported before the forks, so that a child starts at once
    from tta_apm import cli
    from tta_apm.bench import sweep
    kills, root, *arguments = sys.argv[1:]
    torch.set_num_threads(1)  # no thread pool to lose in a fork
    random.seed(0)
    deaths = rounds = 0

    def cells():
        return len(list(folder.rglob("*.json")))

    while deaths < int(kills):
        folder = Path(root, str(rounds))
        wanted = cells() + deaths % 3
        child = os.fork()
        if not child:
            os._exit(cli.main([*arguments, "OUTPUT_DIR", str(folder)]))
        # Not after a time, which is the start's on a busy machine: somewhere behind some cells.
        ended = 0
        while cells() < wanted and not ended:
            time.sleep(0.005)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(random.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if status == signal.SIGKILL:
            deaths += 1
            print("killed after", cells(), flush=True)
        else:  # it was done before: on with the next folder
            assert status == cli.OK, status
            rounds += 1
    sys.exit(cli.main([*arguments, "OUTPUT_DIR", str(folder)]))
"""


def test_ten_kills_lose_nothing_and_double_nothing(sweep, tmp_path):
    methods = "[source, tent, 'apm HIDDEN [64] STEPS 10 IMAGE_SIZE 32 PATCH 8 CODE 16']"
    _, undisturbed, _ = sweep(methods, "SEVERITY", "[1,5]", folder="undisturbed")
    (tmp_path / "kills.py").write_text(textwrap.dedent(KILLS))
    done = subprocess.run(
        [sys.executable, tmp_path / "kills.py", "10", tmp_path / "killed", "--cfg",
         tmp_path / "sweep.yaml", "METHODS", methods, *SMALL, "SEVERITY", "[1,5]"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == cli.OK, done.stderr
    # Each kill hit a process that was at work, and they hit at many moments of the work.
    moments = [int(line.split()[-1]) for line in done.stdout.splitlines()
               if line.startswith("killed after ")]
    assert len(moments) == 10 and all(0 <= moment <= 12 for moment in moments)
    assert len([moment for moment in moments if 0 < moment < 12]) >= 4, moments
    for killed in (tmp_path / "killed").iterdir():
        assert not list(killed.rglob("*.tmp"))
        assert len(list(killed.rglob("*.json"))) == len(list(killed.rglob("*.npz"))) == 12
        for file in undisturbed.rglob("*.json"):
            twin = killed / file.relative_to(undisturbed)
            ours, theirs = (load_predictions(path, load_record(path)) for path in (file, twin))
            assert (ours.prediction == theirs.prediction).all()
            assert (ours.index == theirs.index).all()


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
