"""Sweeps that are interrupted or killed, and go on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from sweeps import SMALL
from tta_apm import cli
from tta_apm.bench.records import load_predictions, load_record

pytestmark = pytest.mark.slow  # sweeps, processes or training


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(sweep, monkeypatch):
    from tta_apm.bench import recorder as module
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
    from tta_apm.bench import recorder as module
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
