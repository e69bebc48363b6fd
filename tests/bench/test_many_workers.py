"""Workers: several processes share a sweep and give what one gives, however they are started."""

from __future__ import annotations

import json

import pytest

from small_methods import NAMES, SMALL
from sweeps import FEW, RAY, SLURM, cells
from tta_apm import cli
from tta_apm.bench.claim_state import FILE
from tta_apm.bench.records import load_record

pytestmark = pytest.mark.slow  # sweeps, processes or training

# Every method, in a size for tests; those that carry state over take their domains in a row.
EVERY = {"METHODS": NAMES, "CORRUPTIONS": ["fog", "contrast"], "NUM_IMAGES": 8,
         "BATCH_SIZE": 4, "SEEDS": [1], "SETTING": "continual",
         **{name.upper(): {key.upper(): list(value) if isinstance(value, tuple) else value
                           for key, value in keywords.items()}
            for name, keywords in SMALL.items()}}


def test_every_method_gives_the_same_bytes_alone_and_shared_by_two(command, tmp_path, capsys):
    assert cli.main(command(EVERY, "alone", "TOGETHER", "1")) == cli.OK
    alone = cells(tmp_path / "alone")
    assert len(alone) == 2 * len(NAMES)
    assert cli.main(command(EVERY, "two", "--workers", "2")) == cli.OK
    assert cells(tmp_path / "two") == alone
    printed = capsys.readouterr()
    assert "2 workers on this machine (processes " in printed.out
    logs = [(tmp_path / f"two/logs/worker-{number}.log").read_text() for number in (1, 2)]
    assert all(log.count("  error ") >= 4 for log in logs)
    assert not (tmp_path / "two" / FILE).exists()
    told = (tmp_path / "two/table.md").read_text()
    assert "~ before a time: measured while other processes used the same device" in told


@pytest.mark.parametrize("setting", ["reset_each_domain", "gradual", "mixed_domains"])
def test_every_setting_gives_the_same_bytes_alone_together_and_shared(command, tmp_path, setting):
    """Continual, the fourth, is that of every method above."""
    config = {**FEW, "METHODS": ["source", "norm", "tent", "eata FISHER_ALPHA 0"],
              "CORRUPTIONS": ["fog", "contrast"], "SEVERITY": [1, 3, 5], "SEEDS": [1, 2],
              "SETTING": setting}
    assert cli.main(command(config, "alone", "TOGETHER", "1")) == cli.OK
    alone = cells(tmp_path / "alone")
    assert len(alone) == 4 * 2 * 6
    assert cli.main(command(config, "together")) == cli.OK
    assert cells(tmp_path / "together") == alone
    assert cli.main(command(config, "two", "--workers", "2")) == cli.OK
    assert cells(tmp_path / "two") == alone


# Its constructor notes each time that the work before all images is done.
PRECOMPUTED = """
import os
from pathlib import Path
import torch
from tta_apm.backbones.tensor_cache import precomputed
from tta_apm.method import Method, register

@register("set_up_once")
class SetUpOnce(Method):
    needs, scope = "classifier", "image"

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.scale = precomputed("scale", self.work)["scale"]

    def work(self):
        with open(Path(__file__).with_suffix(".txt"), "a") as file:
            file.write(f"{os.getpid()}\\n")
        return {"scale": torch.tensor(2.0)}

    def forward(self, images):
        return self.scale * self.backbone(images)

    def reset(self):
        pass
"""


def test_what_comes_before_all_images_is_worked_out_by_one_of_them(command, tmp_path):
    (tmp_path / "plugin.py").write_text(PRECOMPUTED)
    config = {**FEW, "METHODS": ["set_up_once", "source"], "PLUGINS": [str(tmp_path / "plugin.py")]}
    assert cli.main(command(config, "two", "--workers", "2")) == cli.OK
    assert len((tmp_path / "plugin.txt").read_text().split()) == 1
    logs = [(tmp_path / f"two/logs/worker-{number}.log").read_text() for number in (1, 2)]
    assert all("set_up_once" in log for log in logs)
    assert not (tmp_path / "two/.precomputed").exists()


def test_ray_gives_the_same_bytes(command, tmp_path, capsys):
    pytest.importorskip("ray")
    assert cli.main(command(EVERY, "alone")) == cli.OK
    assert cli.main(command(EVERY, "ray", "--workers", "2", *RAY)) == cli.OK
    assert cells(tmp_path / "ray") == cells(tmp_path / "alone")
    assert "2 Ray actors with 1 cores and 0 GPUs each, on 1 node\n" in capsys.readouterr().out


def test_submitit_gives_the_same_bytes(command, tmp_path, capsys, submitit_here):
    assert cli.main(command(EVERY, "alone")) == cli.OK
    assert cli.main(command(EVERY, "jobs", "--workers", "2", *SLURM, "LAUNCH.TIME", "30",
                            "LAUNCH.PARTITION", "gpu")) == cli.OK
    assert cells(tmp_path / "jobs") == cells(tmp_path / "alone")
    assert "Ctrl-C ends only this display" in capsys.readouterr().out


def test_four_identical_commands_share_the_work(start, tmp_path, command):
    processes = [start(FEW, "shared") for _ in range(4)]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [cli.OK] * 4, said
    lines = [line for out, _ in said for line in out.splitlines() if "  error " in line]
    assert len(lines) == 12 == len({tuple(line.split()[:4]) for line in lines})
    assert cli.main(command(FEW, "alone")) == cli.OK
    assert cells(tmp_path / "shared") == cells(tmp_path / "alone")


def test_seconds_are_marked_only_where_others_were_at_work(command, tmp_path):
    assert cli.main(command(FEW, "alone")) == cli.OK
    assert not any(load_record(file).crowded for file in (tmp_path / "alone").rglob("*42.json"))
    old = next((tmp_path / "alone").rglob("source/*.json"))
    content = json.loads(old.read_text())
    del content["crowded"]  # a record of an earlier version
    old.write_text(json.dumps(content))
    assert load_record(old).crowded is False
