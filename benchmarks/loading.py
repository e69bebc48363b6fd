"""Images per second of a stream of JPEG files against decoding them alone.

    python benchmarks/loading.py --images 512 --append

The files are synthetic: smooth noise of 500×375 pixels, quality 90, about 50 kB each, in class
folders. "Decoding alone" reads, resizes and crops them in threads, batch by batch. The stream adds
the other work of a sweep: order, hashes of the images, the transfer to the device as uint8, and
there the conversion to floats in [0,1] and the resize to 224 pixels.

The last rows simulate a busy device, which takes as long per batch as decoding a batch and leaves
the processor free (a sleep). One after the other, this halves the speed of decoding alone. With
prefetching it should be as fast as the slower of the two, except for the conversion to floats,
which on a CPU uses the cores that decode.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import common
from tta_apm.backbones.backbone import Backbone
from tta_apm.bench.batches import load_batches, to_device
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import CLEAN, DataSet, Domain
from tta_apm.data.imagenet import folder_of_classes
from tta_apm.data.streams import Stream, prefetched

CLASSES = 16
RESOLUTION = 224


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        size = write_files(Path(folder), options.images)
        files = folder_of_classes(data_dir=folder, frost_dir=None)
        clean, fog = Domain("folder", CLEAN, 0), Domain("folder", "fog", 5)
        corrupted = Corrupted("folder", files, constants="imagenet")
        rows = [*measure("decoding", files, clean, options, device),
                *measure("decoding and making fog", corrupted, fog, options, device)]
    lines = common.table(["", "images per second", "of that alone"], rows)
    common.publish("Loading", [*lines, "", f"{options.images} files of {size / 1e3:.0f} kB, "
                               f"batches of {options.batch_size}, median of {options.rounds} "
                               "rounds in turn; range of the ratio in brackets."],
                   device, options.append)


def measure(title: str, dataset: DataSet, domain: Domain, options: argparse.Namespace,
            device: torch.device) -> list[list[str]]:
    """A row for each way through the images of `domain`."""
    stream = Stream(dataset, [domain], num_images=options.images, batch_size=options.batch_size,
                    seed=0)
    backbone = Backbone(image_size=RESOLUTION, mean=[0.5] * 3, std=[0.5] * 3, name="", weights="")
    backbone.to(device)

    def decode() -> None:
        for start in range(0, options.images, options.batch_size):
            dataset.images(domain, stream.indices[start:start + options.batch_size])

    alone = min(common.in_turn([decode], 3, device)[0])
    busy = alone * options.batch_size / options.images

    def use(batches: Iterable, seconds: float) -> None:
        for _, pixels, _ in batches:
            backbone.prepare(to_device(pixels, device))
            time.sleep(seconds)

    ways = {f"{title}: alone": decode,
            "as a stream": lambda: use(load_batches(stream, device), 0),
            "as a stream, prefetched": lambda: use(prefetched(load_batches(stream, device)), 0),
            "beside a busy device": lambda: use(load_batches(stream, device), busy),
            "beside a busy device, prefetched":
                lambda: use(prefetched(load_batches(stream, device)), busy)}
    seconds = common.in_turn(list(ways.values()), options.rounds, device)
    return [[name, f"{options.images / median(times):.0f}", common.ratio(seconds[0], times)]
            for name, times in zip(ways, seconds)]


def write_files(folder: Path, count: int) -> float:
    """Write `count` JPEG files into class folders; returns their mean size in bytes."""
    generator = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        file = folder / f"class {number % CLASSES}" / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
        sizes.append(file.stat().st_size)
    return float(np.mean(sizes))


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
