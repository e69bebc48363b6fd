"""Launch: what the options of many workers say, refuse and leave out of the records."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

from places import ROOT
from sweeps import FEW, RAY, SLURM, cells
from tta_apm import cli
from tta_apm.bench.launch import local, slurm
from tta_apm.bench.launch.launcher import LAUNCHERS
from tta_apm.bench.launch.local import Local
from tta_apm.bench.launch.worker import Order
from tta_apm.config import load
from tta_apm.config.launch import minutes
from tta_apm.errors import UserError

pytestmark = pytest.mark.slow  # sweeps, processes or training


def test_a_row_that_fails_and_a_setting_that_is_bad(command, tmp_path, capsys):
    config = {**FEW, "METHODS": ["source", "tent"]}
    code = cli.main(command({**config, "BATCH_SIZE": 1}, "failed", "--workers", "2"))
    assert code == cli.FAILED_CELLS
    printed = capsys.readouterr()
    assert printed.out.count("FAILED: ") == 3 and "3 of 6 cells FAILED" in printed.err
    assert cli.main(command({**config, "METHODS": ["tent"], "TENT": {"LR": -1}}, "bad",
                            "--workers", "2")) == cli.BAD_INPUT
    assert "worker " in (said := capsys.readouterr().err) and "lr -1" in said


def test_what_is_launched_with_enters_no_identity_and_no_saved_config(command, tmp_path, capsys):
    assert cli.main(command(FEW, "one", "LAUNCH.GPUS", "4", "LAUNCH.SETUP", "[module load]")) \
        == cli.OK
    assert "cells to run" in capsys.readouterr().out
    assert cli.main(command(FEW, "one", "--workers", "2", "TOGETHER", "1", "NUM_WORKERS", "1")) \
        == cli.OK
    assert "cells to run" not in capsys.readouterr().out
    assert "LAUNCH" not in (tmp_path / "one/config.yaml").read_text()


def test_local_workers_get_a_gpu_each_and_a_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "free_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    for name in local.THREADS:
        monkeypatch.delenv(name, raising=False)

    def orders(*words: str) -> list[Order]:
        cfg = load("cfgs/digits_c/base.yaml", ["OUTPUT_DIR", str(tmp_path), *words])
        return Local(cfg, 3).orders(redo=False)

    devices = [order.environment["CUDA_VISIBLE_DEVICES"] for order in orders()]
    assert sorted(devices[:2]) == ["4", "7"] and devices[2] == devices[0]
    assert not any("CUDA_VISIBLE_DEVICES" in order.environment
                   for order in orders("DEVICE", "cpu"))
    for order in orders():
        assert order.num_threads == 2
        assert {order.environment[name] for name in local.THREADS} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's own choice
    assert all(order.environment["OMP_NUM_THREADS"] == "1" for order in orders())


def test_a_dry_run_shows_units_and_the_batch_script(command, capsys):
    config = {**FEW, "SETTING": "continual"}
    words = command(config, "dry", "--workers", "3", *SLURM, "--dry-run", "LAUNCH.PARTITION", "gpu",
                    "LAUNCH.TIME", "4:00:00", "LAUNCH.MEMORY", "32G", "LAUNCH.ARRAY_LIMIT", "2",
                    "LAUNCH.SETUP", "[module load cuda]", "LAUNCH.CPUS", "6")
    assert cli.main(words) == cli.OK
    out = capsys.readouterr().out
    assert "10 units for 3 workers (one worker runs all of a unit): 9 of one cell each" in out
    assert "  tent, seed 1: 3 cells, continual-shuffled/tent/fog-5-seed1 ..." in out
    script = out[out.index("#!/bin/bash"):].splitlines()
    assert {"#SBATCH --array=1-3%2", "#SBATCH --partition=gpu", "#SBATCH --time=4:00:00",
            "#SBATCH --mem=32G", "#SBATCH --gpus-per-node=1", "module load cuda"} <= {*script}
    assert not any(line.startswith(("#SBATCH --account", "#SBATCH --qos")) for line in script)
    [run] = [line for line in script if line.startswith("srun ")]
    assert run.startswith("srun --cpus-per-task=6 tta-apm --cfg ") and "--workers" not in run
    assert script[-1] == "exit $code"


@pytest.mark.parametrize("words, sentence", [
    (("--workers", "0"), "--workers 0 must be at least 1"),
    (("--launcher", "rya", "--workers", "2"), "unknown launcher 'rya': did you mean 'ray'?"),
    (SLURM, "--launcher slurm: say how many workers"),
    ((*SLURM, "--workers", "2", "--address", "here"), "--address is for --launcher ray"),
    (("--address", "here"), "--address is for --launcher ray"),
    ((*SLURM, "--workers", "2", "LAUNCH.CPUS", "-1"), "LAUNCH: CPUS -1 must be at least 0"),
    ((*SLURM, "--workers", "2", "--dry-run", "LAUNCH.TIME", "soon"), "LAUNCH.TIME 'soon': give "),
    ((*SLURM, "--workers", "2", "--dry-run", "LAUNCH.TIME", "4:00"),
     "LAUNCH.TIME 4:00: give a job at least 5 minutes"),
    (("LAUNCH.TIME", "1:2:3:4"), "LAUNCH.TIME '1:2:3:4': give minutes"),
    (("LAUNCH.MEMORY", "much"), "LAUNCH.MEMORY 'much': give a number and K, M, G or T"),
    (("LAUNCH.PARTITION", "a b"), "LAUNCH.PARTITION 'a b': give a name without blanks"),
    (("LAUNCH.SETUP", '["a\nb"]'), "LAUNCH.SETUP: give a text of one line")])
def test_bad_input_is_one_sentence(command, capsys, words, sentence):
    assert cli.main(command(FEW, "bad", *words)) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_folder_that_the_workers_do_not_see_is_one_sentence(command, capsys, monkeypatch):
    class Elsewhere(Local):
        """Its workers look on another disk."""

        def orders(self, *, redo):
            return [replace(order, folder=f"{order.folder}-of-another-disk")
                    for order in super().orders(redo=redo)]

    monkeypatch.setitem(LAUNCHERS._registered, "elsewhere", Elsewhere)
    test_bad_input_is_one_sentence(
        command, capsys, ("--workers", "2", "--launcher", "elsewhere"),
        "OUTPUT_DIR must be on a disk that all machines share")


@pytest.mark.parametrize("package, words, sentence", [
    ("ray", (*RAY, "--address", "127.0.0.1:1"), "nobody answers there"),
    ("ray", (*RAY, "LAUNCH.CPUS", "4000"), "the Ray cluster has "),
    ("submitit", SLURM, "--dry-run prints the script")])
def test_a_cluster_that_is_not_there_is_one_sentence(command, capsys, monkeypatch, package, words,
                                                     sentence):
    pytest.importorskip(package)
    if words == SLURM:
        monkeypatch.setenv("PATH", "")  # without srun
    test_bad_input_is_one_sentence(command, capsys, ("--workers", "2", *words), sentence)


@pytest.mark.parametrize("name, extra", [("ray", "tta-apm[ray]"), ("submitit", "tta-apm[slurm]")])
def test_an_extra_that_is_not_installed_is_named(command, capsys, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    launcher = "ray" if name == "ray" else "slurm"
    assert cli.main(command(FEW, "bad", "--workers", "2", "--launcher", launcher)) == cli.BAD_INPUT
    assert extra in capsys.readouterr().err


def test_a_launcher_of_yours_as_the_guide_has_it(command, tmp_path, capsys, monkeypatch):
    """Word for word; the entry point is stood in for, since nothing is installed for a test."""
    guide = (ROOT / "docs/guides/launcher.md").read_text(encoding="utf-8")
    found: dict = {}
    exec(guide.split("```python\n")[1].split("```")[0], found)  # text of ours
    monkeypatch.setitem(LAUNCHERS._registered, "mine", found["Mine"])
    assert cli.main(command(FEW, "mine", "--workers", "2", "--launcher", "mine")) == cli.OK
    assert "2 processes\n" in capsys.readouterr().out
    assert len(cells(tmp_path / "mine")) == 12


def test_slurm_s_times_are_read_as_slurm_reads_them():
    for text, count in (("90", 90), ("90:30", 91), ("2:00:00", 120), ("1-12", 36 * 60),
                        ("1-0:30", 24 * 60 + 30), ("1-0:30:01", 24 * 60 + 31)):
        assert minutes(text) == count
    for text in ("", "an hour", "1:2:3:4", "-5", "1-"):
        with pytest.raises(UserError, match="LAUNCH.TIME"):
            minutes(text)


# Each stands in for a command of Slurm: it keeps the script, and knows no job later.
OF_SLURM = {"sbatch": 'cp "$1" "${0%/*}/script" && echo Submitted batch job 7', "squeue": "",
            "scancel": "", "srun": ""}


def test_a_submitted_array_has_every_key_of_launch(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for name, text in OF_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    words = {"PARTITION": "gpu", "ACCOUNT": "us", "QOS": "high", "TIME": "1-2:00:00", "GPUS": "2",
             "CPUS": "6", "MEMORY": "32G", "CONSTRAINT": "a100", "SETUP": "[module load cuda]",
             "ARRAY_LIMIT": "2"}
    launcher = slurm.Slurm(load("cfgs/digits_c/base.yaml", [
        "OUTPUT_DIR", str(tmp_path / "jobs"),
        *(word for key, value in words.items() for word in (f"LAUNCH.{key}", value))]), 3)
    orders = launcher.orders(redo=False)
    assert {order.num_threads for order in orders} == {6}
    assert launcher.start(orders).startswith("jobs 7_0, 7_1, 7_2; ")
    script = (tmp_path / "script").read_text()
    assert {f"#SBATCH --{option}" for option in (
        "partition=gpu", "account=us", "qos=high", "time=1560", "gpus-per-node=2",
        "cpus-per-task=6", "mem=32G", "constraint=a100", "array=0-2%2", "requeue",
        "signal=USR2@90")} | {"module load cuda"} <= {*script.splitlines()}
    assert " --cpus-per-task=6 " in next(line for line in script.splitlines()
                                         if line.startswith("srun "))
    assert launcher.ended() == {}  # a result may be seen late
    assert {ending.died for ending in launcher.ended().values()} == {"Slurm ended its job"}
    assert len(launcher.ended()) == 3


def test_a_job_without_a_time_is_one_sentence(command, capsys, submitit_here):
    test_bad_input_is_one_sentence(command, capsys, (*SLURM, "--workers", "2"),
                                   "--launcher slurm: say how long a job may run, e.g. LAUNCH.TIME")
