"""Commands that are killed at random moments, resumed, and compared with undisturbed runs.

    python benchmarks/kills.py                      200 kills: six minutes of one core
    python benchmarks/kills.py --kills 6 --commands import table

Half of the kills are at a random time, half at a random file operation of the command (opening,
renaming, removing, making a folder), since these are too short to be hit by time. After one to four
kills the command runs to its end. Then each file must be bit-identical to that of an undisturbed
run, except for the times in a record; no file may be missing or left over; and a cell that was
complete at a kill must not have been run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import machine, table
from tta_apm import cli
from tta_apm.data import cifar

# Imported once, before the forks.
HEAVY = ("tta_apm.fields.pretrain", "tta_apm.fields.teachers", "tta_apm.bench.sweep",
         "tta_apm.data.prepare.make",
         "tta_apm.commands.imports", "tta_apm.report.write", "tta_apm.report.plots",
         "tta_apm.fields.pictures", "matplotlib.figure", "timm", "open_clip")
NUM_TEST = 64  # images of the CIFAR-10 that data make is given
WATCHED = ("open", "os.rename", "os.remove", "os.mkdir")
TIMES = ("seconds", "peak_memory_mb")
SMALL = ("--cfg", "cfgs/digits_c/apm.yaml", "CORRUPTIONS", "[fog,contrast]", "SEVERITY", "[3,5]",
         "NUM_IMAGES", "6", "BATCH_SIZE", "3", "OUTPUT_DIR", "work")
LOG = """[25/11/26 10:00:00] [test_time.py:  108]: CORRUPTION:
  DATASET: cifar10_c
  NUM_EX: 10000
MODEL:
  ADAPTATION: tent
  ARCH: Standard
SETTING: continual
OPTIM: {LR: 0.001, METHOD: Adam, STEPS: 1}
RNG_SEED: 1
[25/11/26 10:00:00] [test_time.py:  108]: cifar10_c error % [fog5][#samples=10000]: 12.00%
"""

State = dict[str, bytes]


@dataclass(frozen=True)
class Command:
    """A command line, and what makes the folder `work` ready for it."""

    words: Sequence[str]
    kills: int
    prepare: Callable[[], None] = lambda: None

    @property
    def makes_cells(self) -> bool:
        """Whether its tables hold times of its own."""
        return "METHODS" in self.words


def _old_cells() -> None:
    """Cells of the same rows with other settings."""
    _must(["--cfg", *SMALL[1:], "METHODS", "[norm,tent]", "TENT.LR", "0.1",
           "NORM.PSEUDO_COUNT", "8"])


def _cells() -> None:
    _must([*SMALL, "METHODS", "[source,tent,norm]"])
    for file in Path("work").glob("table.*"):
        file.unlink()


def _log() -> None:
    Path("log.txt").write_text(LOG, encoding="utf-8")


def _cifar() -> None:
    folder = Path("work/cifar-10-batches-bin")
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (NUM_TEST, 3073), np.uint8)
    images[:, 0] %= 10
    images.tofile(folder / "test_batch.bin")


COMMANDS = {
    "sweep": Command([*SMALL, "METHODS", "[source,tent,clip_zero_shot,"
                      "apm HIDDEN [32] STEPS 2 IMAGE_SIZE 32 PATCH 8 CODE 16]"], 60),
    "redo": Command([*SMALL, "--redo", "METHODS", "[norm,tent]"], 40, _old_cells),
    "table": Command(["table", "work"], 25, _cells),
    "data make": Command(["data", "make", "cifar10_c", "--corruptions", "fog,contrast,pixelate",
                          "--data-dir", "work"], 30, _cifar),
    "import": Command(["import", "log.txt", "--into", "work"], 15, _log),
    "pretrain": Command(["pretrain", "--cfg", "cfgs/pretrain/quick.yaml", "OUTPUT_DIR", "work",
                         "STEPS", "12", "SAVE_EVERY", "2", "HIDDEN", "[16]", "IMAGE_SIZE", "64",
                         "BATCH_SIZE", "2", "NUM_WORKERS", "0"], 30),
}


def main() -> int:
    """Print the table; returns 1 if anything was lost, different, doubled or left over."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, help="of each command (default: 200 in all)")
    options.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    for name in HEAVY:
        importlib.import_module(name)
    torch.set_num_threads(1)  # no threads to lose in a fork
    cifar.NUM_TEST = NUM_TEST
    random.seed(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        counts = {name: _try(COMMANDS[name], chosen.kills or COMMANDS[name].kills)
                  for name in chosen.commands}
        os.chdir(before)
    counts["all"] = sum(counts.values(), Counter())
    head = ["command", "killed by the clock", "at a file operation", "runs to the end", "failed",
            "lost", "different", "doubled", "left over"]
    print(f"{machine(torch.device('cpu'))}\n")
    print("\n".join(table(head, [[name, *(str(count[key]) for key in head[1:])]
                                 for name, count in counts.items()])))
    return int(any(counts["all"][key] for key in head[4:]))


def _try(command: Command, kills: int) -> Counter[str]:
    """Kill `command` so often; returns how often what happened."""
    _fresh(command)
    begin = time.monotonic()
    operations = _run(command.words)
    duration, reference = time.monotonic() - begin, _state()
    count: Counter[str] = Counter()
    while (done := count["killed by the clock"] + count["at a file operation"]) < kills:
        _fresh(command)
        whole: State = {}
        for _ in range(min(random.randint(1, 4), kills - done)):
            if random.random() < 0.5:
                killed = _run(command.words, after=random.uniform(0, duration)) is None
                count["killed by the clock"] += killed
            else:
                killed = _run(command.words, at=random.randint(1, operations or 1)) is None
                count["at a file operation"] += killed
            whole |= {name: content for name, content in _state().items()
                      if _is_of(reference, name, content)}
            if not killed:
                break
        count["failed"] += _run(command.words) is None
        count["runs to the end"] += 1
        now = _state()
        count["lost"] += len(reference.keys() - now.keys())
        count["left over"] += len(now.keys() - reference.keys())
        count["different"] += sum(_figures(name, now[name]) != _figures(name, reference[name])
                                  for name in now.keys() & reference.keys()
                                  if not (command.makes_cells and name.startswith("work/table.")))
        count["doubled"] += sum(now.get(name) != content for name, content in whole.items())
    return count


def _is_of(reference: State, name: str, content: bytes) -> bool:
    """Whether a file is the record of a cell as the command makes it."""
    if not name.startswith("work/cells") or not name.endswith(".json") or name not in reference:
        return False
    return bool(json.loads(content)["fingerprint"] == json.loads(reference[name])["fingerprint"])


def _figures(name: str, content: bytes) -> object:
    """What of a file is to be equal."""
    if name.startswith("work/cells") and name.endswith(".json"):
        return {key: value for key, value in json.loads(content).items() if key not in TIMES}
    if name.endswith(".safetensors"):  # whose header is written in any order
        start = 8 + int.from_bytes(content[:8], "little")
        return json.loads(content[8:start]), content[start:]
    return content


def _state() -> State:
    return {str(path): path.read_bytes() for path in sorted(Path("work").rglob("*"))
            if path.is_file()}


def _fresh(command: Command) -> None:
    """Have `work` as it is before the command; it is prepared once."""
    shutil.rmtree("work", ignore_errors=True)
    ready = Path(f"ready for {command.words[0]} {len(command.words)}")
    if not ready.exists():
        command.prepare()
        Path("work").mkdir(exist_ok=True)
        shutil.copytree("work", ready)
    else:
        shutil.copytree(ready, "work")


def _must(words: Sequence[str]) -> None:
    if _run(words) is None:
        raise SystemExit(f"{' '.join(words)} fails")


def _run(words: Sequence[str], after: float | None = None, at: int | None = None) -> int | None:
    """Run a command in a process of its own, to be killed `after` seconds or at a file operation.

    Returns the number of its file operations, or None if it was killed or failed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            operations = _watch(at)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            if after is not None or at is not None:
                os.dup2(silence, 2)
            code = cli.main(words)
            os.write(writer, str(operations[0]).encode())
        finally:
            os._exit(code)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return int(said) if status == 0 and said else None


def _watch(at: int | None) -> list[int]:
    """Count this process's file operations below the working folder; be killed at number `at`."""
    count = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event in WATCHED and str(arguments[0]).startswith("work"):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return count


if __name__ == "__main__":
    sys.exit(main())
