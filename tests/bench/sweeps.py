"""What tests of sweeps share."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tta_apm.atomic import is_alive
from tta_apm.bench.claim_state import find_workers

# Methods that misbehave, a plugin.
STRANGERS = Path(__file__).parent / "strangers.py"
# Settings of a small one.
SMALL = ["NUM_IMAGES", "30", "BATCH_SIZE", "16"]
# A config of 12 short cells.
FEW = {"METHODS": ["source", "norm", "tent", "clip_zero_shot"],
       "CORRUPTIONS": ["fog", "contrast", "snow"], "NUM_IMAGES": 8, "BATCH_SIZE": 4, "SEEDS": [1]}
# Words of a command line.
RAY = ("--launcher", "ray")
SLURM = ("--launcher", "slurm")


def cells(folder: Path) -> dict[str, bytes]:
    """The predictions of every cell."""
    return {str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*.npz")}


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    """Wait until `condition` holds; `process`, if one is given, must not end before."""
    end = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def two_at_work(folder: Path) -> bool:
    """Whether two processes have claimed cells of a folder."""
    return sum(bool(worker.cells) for worker in find_workers(folder)) == 2


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also if nobody has asked for its exit code (a zombie)."""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return not is_alive(pid) or state == "Z"
    return True
