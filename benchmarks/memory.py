"""Peak memory of a CIFAR-10-C sweep over one corruption and over all 15.

    python benchmarks/memory.py --append

The files are synthetic and have the sizes of the official ones: 15 sparse files of 154 MB, which
take no space on disk, and the 10,000 labels. Each sweep is a separate process, whose peak of
resident memory the system counts. The networks are the small packaged ones, so that the memory is
that of the data.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import common
from tta_apm.data.corruptions.constants import CORRUPTIONS

ALLOWED_GB = 2.5


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder) / "CIFAR-10-C")
        rows = []
        for names in (CORRUPTIONS[:1], CORRUPTIONS):
            peak = peak_gb(Path(folder), names, options)
            rows.append([f"{len(names)} domain{'s' * (len(names) > 1)}", f"{peak:.2f}",
                         "yes" if peak < ALLOWED_GB else "NO"])
    lines = common.table(["CIFAR-10-C sweep", "peak GB", f"below {ALLOWED_GB} GB"], rows)
    common.publish("Memory", [*lines, "", f"Methods {', '.join(options.methods)}, "
                              f"{options.images} images per domain, batches of 200, on the CPU."],
                   torch.device("cpu"), options.append)


def write_files(folder: Path) -> None:
    """Files of the official shapes, sparse, so that they take no room."""
    folder.mkdir()
    for name in CORRUPTIONS:
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8,
                                          (50_000, 32, 32, 3))
        del array
    np.save(folder / "labels.npy", np.arange(50_000, dtype=np.uint8) % 10)


def peak_gb(data_dir: Path, names: tuple[str, ...], options: argparse.Namespace) -> float:
    """Peak of the resident memory, in GB, of a sweep over `names`."""
    words = ["--cfg", "cfgs/cifar10_c/all.yaml", "METHODS", f"[{','.join(options.methods)}]",
             "CORRUPTIONS", f"[{','.join(names)}]", "NUM_IMAGES", str(options.images),
             "DATA_DIR", str(data_dir), "OUTPUT_DIR", str(data_dir / f"results{len(names)}"),
             "CLASSIFIER.MODEL", "timm/digits_resnet",
             "CLASSIFIER.WEIGHTS", "digits_resnet.safetensors",
             "CLIP.MODEL", "digits_clip", "CLIP.WEIGHTS", "digits_clip.safetensors",
             "DEVICE", "cpu", "PUBLISHED", "false"]
    process = subprocess.Popen([sys.executable, "-m", "tta_apm.cli", *words],
                               stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the sweep over {len(names)} domains failed")
    return usage.ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["source", "norm", "tent",
                                                         "clip_zero_shot"])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--append", action="store_true", help="append to RESULTS.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
