"""Runs of pretraining: killed and resumed, finished, gone wrong, shared by two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from small_student import SHORT
from tta_apm.errors import UserError
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.distributed import Workers
from tta_apm.fields.pretrain import LOSSES_FILE, STUDENT_FILE, TRAINING_FILE, pretrain

RUN = """
import json, sys, torch
from tta_apm.fields.pretrain import pretrain
from tta_apm.fields.config import from_plain

torch.set_num_threads(1)
print(pretrain(from_plain(json.loads(sys.argv[1]), "argv")) is None)
"""


def start(cfg: PretrainConfig, **environment: str) -> subprocess.Popen:
    """A process that trains a config and prints whether it is not the main worker."""
    return subprocess.Popen([sys.executable, "-c", RUN, json.dumps(vars(cfg))], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / STUDENT_FILE)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=tolerance) for name in one)


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path):
    cfg = replace(SHORT, steps=200_000, output_dir=str(tmp_path / "killed"))
    process = start(cfg)
    saved = tmp_path / "killed" / TRAINING_FILE
    while not saved.is_file() or steps_in(saved) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()

    steps = steps_in(saved) + 3
    resumed = pretrain(replace(cfg, steps=steps))
    straight = pretrain(replace(cfg, steps=steps, output_dir=str(tmp_path / "straight")))
    assert resumed.step == straight.step == steps
    assert torch.allclose(resumed.losses, straight.losses, atol=1e-6)
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "straight"), 1e-6)
    lines = (tmp_path / "killed" / LOSSES_FILE).read_text().splitlines()
    assert lines[0] == "cls,grid,rgb" and len(lines) == steps + 1


def steps_in(file: Path) -> int:
    with safe_open(file, "pt") as content:
        return len(content.get_tensor("losses"))


def test_a_finished_training_is_left_alone_and_another_config_refused(tmp_path):
    cfg = replace(SHORT, output_dir=str(tmp_path))
    pretrain(cfg)
    before = (tmp_path / STUDENT_FILE).stat().st_mtime_ns
    assert pretrain(cfg).step == cfg.steps
    assert (tmp_path / STUDENT_FILE).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another LR, HIDDEN|another HIDDEN, LR"):
        pretrain(replace(cfg, lr=0.5, hidden=(8,)))
    (tmp_path / TRAINING_FILE).write_bytes(b"half a file")
    with pytest.raises(UserError, match="is corrupt or incomplete"):
        pretrain(cfg)


def test_losses_that_are_not_finite_end_the_training(tmp_path):
    with pytest.raises(UserError, match="not finite from step"):
        pretrain(replace(SHORT, lr=1e30, output_dir=str(tmp_path)))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_train_the_student_of_one(tmp_path):
    """As torchrun starts them: gloo on the CPU."""
    alone = pretrain(replace(SHORT, output_dir=str(tmp_path / "alone")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [start(replace(SHORT, output_dir=str(tmp_path / "both")), WORLD_SIZE="2",
                       RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                 for rank in "01"]
    said = [process.communicate(timeout=300) for process in processes]
    assert [out.strip() for out, _ in said] == ["False", "True"], said
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "both"), 1e-5)
    together = np.loadtxt(tmp_path / "both" / LOSSES_FILE, delimiter=",", skiprows=1)
    assert np.allclose(alone.losses, together, atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("tta_apm.fields.distributed.init", lambda device: nullcontext(
        Workers(0, 3, torch.device("cpu"))))
    with pytest.raises(UserError, match="BATCH_SIZE 4 cannot be shared by 3 processes"):
        pretrain(replace(SHORT, output_dir=str(tmp_path)))


def test_a_folder_that_cannot_be_written_to_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot write to OUTPUT_DIR"):
        pretrain(replace(SHORT, output_dir=str(tmp_path / "file" / "below")))
