"""APM: images per second of the batched program and of a plain loop over single images.

    python benchmarks/apm.py --preset slim --images 4

Both sides fit the same students to the same random features for the same steps, in turn, in one
process; the teacher is left out. The loop is eager PyTorch as one would write it: one Student, one
Adam, one image after the other, every column through the whole MLP.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.fast import FastStudent
from tta_apm.apm.method import PRESETS
from tta_apm.apm.student import Student, draw
from tta_apm.bench.cost import synchronize
from tta_apm.episodes import adam, adapt, stack


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    torch.manual_seed(0)
    hidden, pooling = PRESETS[options.preset]
    student = draw(Student(grid=options.grid, patch=14, kernels=1, code=1024,
                           hidden=options.hidden or hidden, feature_dim=options.feature_dim,
                           pooling=options.pooling or pooling), 42).to(device)
    images = torch.randn(options.images, 3, 14 * options.grid, 14 * options.grid, device=device)
    targets = torch.randn(options.images, options.feature_dim, device=device)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    fast = FastStudent(student)

    def batched() -> Tensor:
        return fit_together(fast, images, targets, options.steps)

    def loop() -> Tensor:
        return fit_one_by_one(student, start, images, targets, options.steps)

    seconds = in_turn([loop, batched], options.rounds, device)
    cosine = F.cosine_similarity(loop(), batched()).min().item()
    weights = sum(value.numel() for value in fast.initial.values())
    print(f"{options.preset}, {weights / 1e6:.1f} M weights, {options.grid**2} columns, "
          f"{options.steps} steps, D = {options.feature_dim}, {options.images} images, "
          f"{_machine(device)}")
    for name, times in zip(("one-image loop", "batched"), seconds):
        print(f"{name:<15} {options.images / statistics.median(times):8.3f} images/s   "
              f"({', '.join(f'{value:.2f}' for value in times)} s)")
    ratios = [a / b for a, b in zip(*seconds)]
    print(f"ratio {statistics.median(ratios):.2f} (median of {options.rounds} rounds in turn: "
          f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}); least cosine of the two sides' "
          f"features {cosine:.7f}")


def fit_together(fast: FastStudent, images: Tensor, targets: Tensor, steps: int) -> Tensor:
    """The batched program: all images as episodes of one stack."""
    patches = fast.patches(images)
    weights = adapt(stack(fast.initial, len(images)),
                    lambda stacked: (fast.pooled(stacked, patches) - targets).square().mean(-1),
                    steps=steps, optimizer=lambda leaves: adam(leaves, 1e-4))
    with torch.no_grad():
        return fast.pooled(weights, patches)


def fit_one_by_one(student: Student, start: dict[str, Tensor], images: Tensor, targets: Tensor,
                   steps: int) -> Tensor:
    """The plain loop."""
    features = []
    for image, target in zip(images, targets):
        student.load_state_dict(start)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(student(image), target).backward()
            optimizer.step()
        with torch.no_grad():
            features.append(student(image))
    return torch.stack(features)


def in_turn(sides: list[Callable[[], Tensor]], rounds: int,
            device: torch.device) -> list[list[float]]:
    """Seconds of each side in each round, after one warm-up each."""
    for side in sides:
        side()
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, times in zip(sides, seconds):
            synchronize(device)
            begin = time.perf_counter()
            side()
            synchronize(device)
            times.append(time.perf_counter() - begin)
    return seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="slim")
    parser.add_argument("--hidden", type=int, nargs="+", help="widths in place of the preset's")
    parser.add_argument("--pooling", choices=("mean", "attention"))
    parser.add_argument("--grid", type=int, default=32, help="columns along a side")
    parser.add_argument("--feature-dim", type=int, default=768)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def _machine(device: torch.device) -> str:
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else f"{platform.machine()} CPU, {torch.get_num_threads()} threads")
    return f"{name}, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
