"""Every benchmark runs, in the smallest size that its options allow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from places import ROOT

BENCHMARKS = ROOT / "benchmarks"
ONCE = "--rounds 1"
SMALL_NETS = "--classifier timm/digits_resnet --clip digits_clip"
# Of each script the options, and a word that its result holds.
SMALL = {
    "apm": (f"--teacher digits_clip --columns 4 --images 1 --steps 1 {ONCE} --no-warm-up", "Floor"),
    "arrangements": (f"{SMALL_NETS} --mae digits_mae --images 2 --classes 10 --steps 1 --masks 2 "
                     f"{ONCE}", "| ttt_mae |"),
    "authors": (f"nowhere {ONCE}", "eata is left out"),
    "corruptions": ("--images 2 --severities 1", "sum of 15"),
    "intervals": ("--trials 20 --bootstrap 5 --sizes 20", "| 15 × 3, corruptions 0.7"),
    "growth": ("--teacher digits_clip --hidden 8 --grow images --images 1 2 --columns 4 --steps 1 "
               f"--classes 10 {ONCE}", "peak MB = "),
    "hosts": ("--hosts nowhere", "no hosts in nowhere"),  # tests/interop runs it
    "imagemagick": ("--images 1", "ImageMagick"),  # or that there is none
    "kills": ("--kills 2 --commands import table", "| all "),
    "loading": (f"--images 16 --batch-size 8 {ONCE}", "prefetched"),
    "mttt": (f"--width 24 --heads 3 --tokens 16 --images 2 {ONCE}", "loop / one program"),
    "memory": ("--methods source --images 20", "15 domains"),
    "methods": (f"{SMALL_NETS} --classes 10 --images 1 --methods source clip_zero_shot",
                "| clip_zero_shot |"),
    "one_pass": (f"digits --images 4 --rows source clip_zero_shot coop {ONCE}",
                 "of a single row "),
    "overhead": (f"--methods source --images 10 --corruptions fog {ONCE}", "| source |"),
    "student": ("--images 20 --corruptions contrast", "vote of 2 students"),
    "precision": ("--images 8 --batch 4", "| bfloat16 "),
    "worker_kills": ("--kills 1", "| doubled "),
    "workers": (f"--images 2 {ONCE}", "| 2 by local "),
}


def test_every_benchmark_has_a_small_size():
    """A new script is to be named above, in a size of a few seconds."""
    helpers = {"author_sides", "common", "in_hosts"}
    assert {file.stem for file in BENCHMARKS.glob("*.py")} == {*SMALL, *helpers}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name, tmp_path):
    options, wanted = SMALL[name]
    before = (BENCHMARKS / "RESULTS.md").read_bytes()
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *options.split()], cwd=tmp_path, text=True,
        capture_output=True, timeout=300, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    assert wanted in done.stdout and "nan" not in done.stdout
    assert (BENCHMARKS / "RESULTS.md").read_bytes() == before
    assert not list(tmp_path.iterdir())
