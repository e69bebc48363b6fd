"""Milliseconds per image of the 15 corruptions, as a Markdown table.

    python benchmarks/corruptions.py --size 32 --images 256
    python benchmarks/corruptions.py --size 224 --images 8 --constants imagenet

Where imagecorruptions is installed (imagecorruptions-imaug 1.1.5 runs all 15), it is timed in turn
with ours. It knows the severities of ImageNet-C only: compare with --constants imagenet.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

# Sum of the 15 and glass_blur alone, ms per image on one core, mean over severities, of the
# generators that could be installed when this was written. By side of the image.
LISTED = {32: (18.6, 8.6), 224: (598.0, 472.0)}
ROUNDS = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--constants", choices=["cifar", "imagenet"], default="cifar")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def limit_threads(threads: int) -> None:
    """Has an effect only before numpy is imported."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def fastest(runs: list[Callable[[], object]]) -> list[float]:
    """Seconds of the fastest of some rounds, for runs taken in turn after one to warm up."""
    for run in runs:
        run()
    best = [float("inf")] * len(runs)
    for _ in range(ROUNDS):
        for k, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def machine() -> str:
    """Processor and versions, in one line."""
    import numpy
    import PIL
    import scipy

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (f"{names[0] if names else platform.machine()}, Python {platform.python_version()}, "
            f"numpy {numpy.__version__}, scipy {scipy.__version__}, Pillow {PIL.__version__}")


def main() -> None:
    args = arguments()
    limit_threads(args.threads)
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from tta_apm.data.corruptions import CORRUPTIONS, corrupt, frost_source

    noise = np.random.default_rng(0).uniform(0, 255, (args.images, args.size, args.size, 3))
    images = gaussian_filter(noise, (0, 1, 1, 0)).astype(np.uint8)
    indices = np.arange(args.images)
    names = ["tta_apm"]
    if importlib.util.find_spec("imagecorruptions"):
        from imagecorruptions import corrupt as foreign
        names.append("imagecorruptions")

    def seconds(corruption: str, severity: int) -> list[float]:
        def ours() -> object:
            return corrupt(images, corruption, severity, indices=indices,
                           constants=args.constants)

        def theirs() -> object:
            return [foreign(image, severity, corruption) for image in images]

        return fastest([ours, theirs][:len(names)])

    print(f"{args.images} images of {args.size}x{args.size}, {args.constants} constants, mean over "
          f"severities {args.severities}, {args.threads} thread(s), {frost_source()} frost; "
          f"fastest of {ROUNDS}.\n{machine()}\n")
    print(f"| ms per image | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    sums = np.zeros(len(names))
    for corruption in CORRUPTIONS:
        rows = [seconds(corruption, severity) for severity in args.severities]
        means = 1000 * np.mean(rows, axis=0) / args.images
        sums += means
        print(f"| {corruption} | {' | '.join(f'{value:.3f}' for value in means)} |", flush=True)
    print(f"| **sum of {len(CORRUPTIONS)}** | {' | '.join(f'{value:.2f}' for value in sums)} |")
    if len(names) == 2:
        print(f"\nRatio in this process: {sums[1] / sums[0]:.1f}")
    if args.size in LISTED:
        listed, glass = LISTED[args.size]
        print(f"\nListed: {listed} (of which glass_blur {glass}); ratio {listed / sums[0]:.1f}")


if __name__ == "__main__":
    main()
