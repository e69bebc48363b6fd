"""Twelve methods against the code of their authors, or its port in online-tta, on the same work.

    python benchmarks/authors.py CLONES
    python benchmarks/authors.py CLONES --classifier torchvision/resnet18 --size 224 --images 16

CLONES is a folder of clones, each by its own name, none of which is part of this repository:
https://github.com/mr-eggplant/EATA, mr-eggplant/SAR, Jhyun17/DeYO, matsuolab/T3A,
TaesikGong/NOTE, tim-learn/SHOT, yueatsprograms/uda_release (UDA-SS), and
mariodoebler/test-time-adaptation (online-tta) for CoTTA, ROID (its authors' own), RoTTA,
AdaContrast's online form and LAME.
A method whose clone is not there is left out.

Both sides adapt copies of one network, of random weights in the same memory layout, to the same
batches, in turn, in one process. Filters are open, so that both do all of the work. Memory is the
peak of a process of its own for each side.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import common
from author_sides import SIDES, Bench, Side
from tta_apm.backbones.build import untrained
from tta_apm.backbones.classifiers import Classifier
from tta_apm.bench import measure
from tta_apm.data.imagenet_classes import class_names


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    if options.memory_of:
        print(peak_mb(options, device))
        return
    # The process's own time, on a CPU that others share, too.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    rows, missing = [], []
    for name in options.methods:
        try:
            ours, theirs = sides(options, name, device)
        except Exception as error:  # no clone, or one that does not run here
            missing.append(f"{name} is left out: {error}")
            continue
        batches = images(options, device)

        def run(side: Side) -> Callable[[], object]:
            return lambda: [side(batch) for batch in batches]
        with torch.no_grad():
            seconds = common.in_turn([run(ours), run(theirs)], options.rounds, device, clock=clock)
        count = options.images * options.batches
        memory = [alone(options, f"{name} {index}") for index in (0, 1)]
        rows.append([name, *(f"{1000 * median(times) / count:.3g}" for times in seconds),
                     common.ratio(seconds[1], seconds[0]), *memory])
    lines = common.table(["method", "ours, ms/image", "theirs, ms/image", "their time over ours",
                          "ours, peak MB", "theirs, peak MB"], rows)
    lines += ["", f"{options.batches} batches of {options.images} images of {options.size} pixels; "
              f"{options.classifier} with {options.classes} classes and random weights. Median of "
              f"{options.rounds} rounds in turn, range in brackets; CPU time if there is no GPU.",
              *missing]
    common.publish("Methods against the code of their authors", lines, device, options.append)


def sides(options: argparse.Namespace, name: str, device: torch.device) -> tuple[Side, Side]:
    """Ours and theirs, each on a copy of the same network."""
    torch.manual_seed(0)
    network = untrained("classifier", options.classifier, device=device,
                        class_names=class_names()[:options.classes])
    assert isinstance(network, Classifier)
    return SIDES[name](Bench(options.clones.resolve(), network, images(options, device)[0],
                             options.classes))


def images(options: argparse.Namespace, device: torch.device) -> list[Tensor]:
    """The batches."""
    torch.manual_seed(1)
    return [torch.rand(options.images, 3, options.size, options.size, device=device)
            for _ in range(options.batches)]


def alone(options: argparse.Namespace, side: str) -> str:
    """The peak of memory of one side, in a process of its own."""
    words = [sys.executable, __file__, str(options.clones), "--memory-of", side, "--device",
             options.device, "--classifier", options.classifier, "--size", str(options.size),
             "--images", str(options.images), "--batches", str(options.batches), "--classes",
             str(options.classes)]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=True)
    return f"{float(done.stdout.splitlines()[-1]):.0f}"


def peak_mb(options: argparse.Namespace, device: torch.device) -> float:
    """Of a side, while it adapts to the batches for a second time; the process's on a CPU."""
    name, index = options.memory_of.split()
    chosen = sides(options, name, device)[int(index)]
    batches = images(options, device)
    for _ in range(2):  # what is made at the first batch is made there, or in a constructor
        measure.reset_peak_memory(device)
        with torch.no_grad():
            for batch in batches:
                chosen(batch)
    return measure.peak_memory_mb(device)


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("clones", type=Path, help="the folder with the clones")
    parser.add_argument("--methods", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--classifier", default="timm/digits_resnet")
    parser.add_argument("--size", type=int, default=32, help="of images, in pixels")
    parser.add_argument("--images", type=int, default=64, help="in a batch")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
