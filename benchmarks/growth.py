"""Growth: APM's seconds and memory against images, columns, steps and classes.

    python benchmarks/growth.py --device cuda
    python benchmarks/growth.py --hidden 512 256        (minutes on a CPU)

One size grows, while the others keep the first of their own values. A straight line is fitted to
each series; R² shows how linear it is, and the intercept is the constant cost.
"""

from __future__ import annotations

import argparse
import gc
from statistics import median

import numpy as np
import torch

import common
from tta_apm.apm.method import PRESETS, Apm
from tta_apm.backbones.build import untrained
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.bench.measure import peak_memory_mb, reset_peak_memory
from tta_apm.data.imagenet_classes import class_names

SIZES = ("images", "columns", "steps", "classes")


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    lines = []
    for grows in options.grow:
        values = getattr(options, grows)
        sizes = [{size: getattr(options, size)[0] for size in SIZES} | {grows: value}
                 for value in values]
        measured = [measure(options, size, device) for size in sizes]
        rows = [[str(value), f"{seconds:.4g}", f"{memory:.0f}"]
                for value, (seconds, memory) in zip(values, measured)]
        others = ", ".join(f"{value} {size}" for size, value in sizes[0].items() if size != grows)
        lines += [f"Against {grows}, with {others}:", "",
                  *common.table([grows, "seconds", "peak MB"], rows), ""]
        lines += [f"{name} = {line(values, numbers)}" for name, numbers in zip(
            ("seconds", "peak MB"), zip(*measured))] + [""]
    common.publish(f"Growth of APM {options.preset}, hidden {options.hidden or 'as the preset'}",
                   lines, device, options.append)


def measure(options: argparse.Namespace, size: dict[str, int],
            device: torch.device) -> tuple[float, float]:
    """Median seconds of a forward, and its peak memory."""
    clip = untrained("clip", options.teacher, class_names=class_names()[:size["classes"]],
                     device=device)
    assert isinstance(clip, ClipBackbone)
    method = Apm(clip, preset=options.preset, hidden=options.hidden, columns=size["columns"],
                 steps=size["steps"])
    images = torch.rand(size["images"], 3, 224, 224, device=device)
    gc.collect()
    method(images[:1])
    reset_peak_memory(device)
    seconds, = common.in_turn([lambda: method(images)], options.rounds, device)
    return median(seconds), peak_memory_mb(device)


def line(sizes: list[int], values: tuple[float, ...]) -> str:
    """The least-squares line and its R²."""
    slope, start = np.polyfit(sizes, values, 1)
    rest = np.array(values) - (slope * np.array(sizes) + start)
    spread = np.var(values)
    fit = 1 - np.var(rest) / spread if spread else 1.0
    return f"{start:.4g} + {slope:.4g} · size (R² = {fit:.4f})"


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="slim")
    parser.add_argument("--hidden", type=int, nargs="+", help="widths in place of the preset's")
    parser.add_argument("--teacher", default="ViT-B-32")
    parser.add_argument("--grow", nargs="+", choices=SIZES, default=SIZES)
    many = torch.cuda.is_available()
    parser.add_argument("--images", type=int, nargs="+",
                        default=[64, 128, 256, 512, 1024] if many else [1, 2, 4, 8])
    parser.add_argument("--columns", type=int, nargs="+",
                        default=[1024, 64, 128, 256, 512] if many else [256, 64, 512, 1024])
    parser.add_argument("--steps", type=int, nargs="+",
                        default=[20, 1, 5, 10, 40] if many else [4, 1, 2, 8])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 500, 1000])
    return parser.parse_args()


if __name__ == "__main__":
    main()
