"""Fixtures of the tests of sweeps and of their records."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from places import ROOT
from sweeps import SMALL, has_ended
from tta_apm import cli
from tta_apm.bench.launch import slurm


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
def run(tmp_path, capsys):
    """Run a sweep of digits; gives its exit code and what it printed."""
    def call(*words, folder=tmp_path / "results", cfg="cfgs/digits_c/source.yaml"):
        flags = [word for word in words if word.startswith("--")]
        keys = [word for word in words if not word.startswith("--")]
        pairs = {"CORRUPTIONS": "[contrast]", "NUM_IMAGES": "6", "BATCH_SIZE": "6",
                 "OUTPUT_DIR": str(folder)} | dict(zip(keys[::2], keys[1::2]))
        exit_code = cli.main(["--cfg", cfg, *flags, *(word for pair in pairs.items()
                                                      for word in pair)])
        return exit_code, capsys.readouterr()
    return call


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("HOME", os.environ.get("HOME", "/nowhere"))


@pytest.fixture
def command(tmp_path):
    """The words of a command line that runs a config into a folder of tmp_path."""
    def command(config: dict, folder: str, *words: str) -> list[str]:
        file = tmp_path / f"{folder}.yaml"
        file.write_text(yaml.safe_dump(config))
        return ["--cfg", str(file), *words, "OUTPUT_DIR", str(tmp_path / folder)]
    return command


@pytest.fixture
def start(command):
    """Start it as a process of its own."""
    started = []

    def start(*words, **keywords) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "run.py", *command(*words)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, **keywords)
        started.append(process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def submitit_here(monkeypatch):
    """submitit's executor of this machine in place of a Slurm cluster's."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setattr(slurm, "queue_states", lambda job_ids: {  # the ids are those of processes
        job_id: "RUNNING" for job_id in job_ids if not has_ended(int(job_id))})
