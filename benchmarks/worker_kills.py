"""Sweeps of two workers whose processes are killed at random moments, beside an undisturbed one.

    python benchmarks/worker_kills.py               100 kills: a quarter of an hour of two cores

The victim is the driver or one of the workers, at a random moment of the sweep. After one to three
kills the command runs to its end. Then no cell may be missing, differ in a prediction or have been
run again after it was complete; and nothing may be left over, e.g. a claim of a dead process.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import common
from tta_apm.bench.claim_state import FILE, find_workers
from tta_apm.bench.claims import PRECOMPUTED

ROOT = Path(__file__).parents[1]
WORDS = ["--cfg", "cfgs/digits_c/base.yaml", "METHODS",
         "[source,norm,tent,eata,memo NUM_VIEWS 8]", "CORRUPTIONS", "[fog,contrast,snow]",
         "SEVERITY", "[3,5]", "NUM_IMAGES", "60", "BATCH_SIZE", "20", "DEVICE", "cpu"]

Files = dict[str, bytes]


def main() -> int:
    """Print the table; returns 1 if anything was lost, different, doubled or left over."""
    options = common.parser(__doc__)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    random.seed(chosen.seed)
    with tempfile.TemporaryDirectory() as root:
        count = _try(Path(root), chosen.kills)
    lines = common.table(["what", "how often"], [[name, str(number)]
                                                 for name, number in count.items()])
    common.publish("Two workers and their driver, killed", lines, torch.device("cpu"),
                   chosen.append)
    return int(any(count[name] for name in ("failed", "lost", "different", "doubled", "left over")))


def _try(root: Path, kills: int) -> Counter[str]:
    begin = time.monotonic()
    assert _start(root / "reference").wait() == 0
    duration, reference = time.monotonic() - begin, _files(root / "reference", ".npz")
    count = Counter({name: 0 for name in (
        "kills of a worker", "kills of the driver", "runs to the end", "failed", "lost",
        "different", "doubled", "left over")})
    number = 0
    while count["kills of a worker"] + count["kills of the driver"] < kills:
        number += 1
        folder = root / str(number)
        whole: Files = {}
        for _ in range(random.randint(1, 3)):
            process = _start(folder)
            time.sleep(random.uniform(0, duration))
            for name, content in _files(folder, ".json").items():
                count["doubled"] += whole.setdefault(name, content) != content
            workers = [worker.pid for worker in find_workers(folder) if worker.runs]
            if process.poll() is None:
                victim = random.choice([process.pid, *workers])
                os.kill(victim, signal.SIGKILL)
                count["kills of the driver" if victim == process.pid
                      else "kills of a worker"] += 1
            process.wait()
        count["failed"] += _start(folder).wait() != 0
        count["runs to the end"] += 1
        for name, content in _files(folder, ".json").items():
            count["doubled"] += whole.get(name, content) != content
        now = _files(folder, ".npz")
        count["lost"] += len(reference.keys() - now.keys())
        count["different"] += sum(now[name] != reference[name]
                                  for name in now.keys() & reference.keys())
        count["left over"] += len([*folder.rglob("*.tmp"), *folder.glob(FILE),
                                   *folder.glob(PRECOMPUTED), *folder.glob(".lock*")])
    return count


def _start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "run.py", *WORDS, "--workers", "2", "OUTPUT_DIR", str(folder)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _files(folder: Path, ending: str) -> Files:
    """The cells' files of an ending; one that goes meanwhile is left out."""
    found: Files = {}
    for path in sorted(folder.glob(f"cells/**/*{ending}")):
        try:
            found[str(path.relative_to(folder))] = path.read_bytes()
        except FileNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
