"""A sweep by one worker and by two, and by workers of Ray and of submitit, in turn.

    python benchmarks/workers.py                    local: 1 against 2 workers, one thread each
    python benchmarks/workers.py --launchers local ray slurm

The sweep has rows that adapt, on digits under 15 corruptions at two severities. Start-up is stated
separately: the time from the command until all workers have claimed a unit. All build the same rows
until then, the first before its claim, the others after it. submitit uses its local executor, on
this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

import common
from tta_apm import cli
from tta_apm.bench.claim_state import find_workers
from tta_apm.bench.launch import slurm

WORDS = ["--cfg", "cfgs/digits_c/base.yaml", "METHODS",
         "[tent,memo NUM_VIEWS 16,apm HIDDEN [256,64] STEPS 10]",
         "SEVERITY", "[3,5]",
         "LAUNCH.TIME", "1:00:00"]  # Slurm's jobs must have a limit


class Measured:
    """A run's seconds: in all, until all workers had work, and from then on."""

    def __init__(self) -> None:
        self.wall = self.start = 0.0

    @property
    def work(self) -> float:
        return self.wall - self.start


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--images", type=int, default=200, help="per domain, up to 597")
    options.add_argument("--launchers", nargs="+", default=["local"],
                         choices=["local", "ray", "slurm"])
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    slurm.CLUSTER = "local"
    root = Path(tempfile.mkdtemp())
    try:
        lines = compare(chosen, root)
    finally:
        shutil.rmtree(root)
    common.publish("Workers", lines, torch.device(chosen.device), chosen.append)


def compare(options: argparse.Namespace, root: Path) -> list[str]:
    """The table of all sides."""
    sides: dict[tuple[str, int], list[Measured]] = {
        ("local", 1): [], **{(name, 2): [] for name in options.launchers}}
    predictions: list[dict[str, bytes]] = []
    number = 0

    def side(launcher: str, workers: int) -> None:
        nonlocal number
        number += 1
        folder = root / str(number)
        sides[launcher, workers].append(run(launcher, workers, folder, options.images))
        predictions.append({str(path.relative_to(folder)): path.read_bytes()
                            for path in folder.rglob("*.npz")})

    common.in_turn([partial(side, *key) for key in sides], options.rounds, torch.device("cpu"),
                   warm=False)
    assert all(found == predictions[0] for found in predictions), "the predictions differ"
    alone, two = sides["local", 1], sides["local", 2]
    rows = [[f"{workers} by {name}", *(f"{median(values):.1f}" for values in zip(*(
        (one.wall, one.start, one.work) for one in found)))] + [
            common.ratio([one.work for one in alone], [one.work for one in found]),
            common.ratio([one.work for one in found], [one.work for one in two])]
            for (name, workers), found in sides.items()]
    return [*common.table(["workers", "wall s", "of that start s", "work s", "1 by local / this",
                           "this / 2 by local"], rows), "",
            f"{len(predictions[0])} cells of {options.images} images; all predictions are equal."]


def run(launcher: str, workers: int, folder: Path, images: int) -> Measured:
    """One sweep; also one worker is a process that is started."""
    found = Measured()
    begin = time.perf_counter()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set() and workers > sum(
                bool(worker.cells) for worker in find_workers(folder) if worker.runs):
            time.sleep(0.01)
        found.start = time.perf_counter() - begin

    watcher = threading.Thread(target=watch)
    watcher.start()
    with contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main([*WORDS, "NUM_IMAGES", str(images), "OUTPUT_DIR", str(folder),
                         "--workers", str(workers), "--launcher", launcher])
    found.wall = time.perf_counter() - begin
    is_over.set()
    watcher.join()
    assert code == cli.OK, errors.getvalue()
    return found


if __name__ == "__main__":
    main()
