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
    """Has an effect only before numpy and torch are imported."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def main() -> None:
    args = arguments()
    limit_threads(args.threads)
    import numpy as np
    import torch
    from scipy.ndimage import gaussian_filter

    import common
    from tta_apm.data.corruptions.functions import CORRUPTIONS, corrupt, frost_source

    noise = np.random.default_rng(0).uniform(0, 255, (args.images, args.size, args.size, 3))
    images = gaussian_filter(noise, (0, 1, 1, 0)).astype(np.uint8)
    indices = np.arange(args.images)
    cpu = torch.device("cpu")
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

        times = common.in_turn([ours, theirs][:len(names)], ROUNDS, cpu)
        return [min(of_side) for of_side in times]

    print(f"{args.images} images of {args.size}x{args.size}, {args.constants} constants, mean over "
          f"severities {args.severities}, {args.threads} thread(s), {frost_source()} frost; "
          f"fastest of {ROUNDS}.\n"
          f"{common.machine(cpu, ('numpy', 'scipy', 'Pillow'))}\n")
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
