"""Overhead: the wall time of a sweep over that of its methods alone on the same images.

    python benchmarks/overhead.py --methods apm --images 200

The sweep is that of the command line: config, corruptions, streams, predictions, records, table.
The overhead is (wall time - method's seconds in the records) / method's seconds. Both are from the
same run, so that other load on the machine affects both. For comparison, a plain loop calls the
same method on the same batches in memory, which checks the seconds in the records. Imports, data
and weights are excluded. Other constant work of a sweep (a first image, to warm up and to count
FLOPs, and the tables) is included, so use enough images to make it small.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import shutil
import tempfile
from pathlib import Path
from statistics import median

import torch

import common
from tta_apm import cli, config
from tta_apm.backbones.build import build
from tta_apm.backbones.clip_templates import templates
from tta_apm.bench.evaluate import to_device
from tta_apm.bench.records import load_record
from tta_apm.data.streams import Stream, domains
from tta_apm.registry import DATASETS, METHODS


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    root = Path(tempfile.mkdtemp())
    numbers = itertools.count()

    def overrides(method: str) -> list[str]:
        return ["METHODS", f"[{method}]", "NUM_IMAGES", str(options.images), "DEVICE",
                options.device, "CORRUPTIONS", f"[{','.join(options.corruptions)}]",
                *options.overrides]

    def sweep(method: str) -> None:
        folder = root / str(next(numbers))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = cli.main(["--cfg", options.cfg, *overrides(method), "OUTPUT_DIR",
                             str(folder)])
        assert code == cli.OK, f"the sweep of {method} failed"
        inside.append(sum(load_record(file).seconds for file in folder.rglob("cells/**/*.json")))

    rows = []
    try:
        for name in options.methods:
            bare = Bare(config.load(options.cfg, overrides(name)), device)
            sides = [lambda: bare.run(), lambda: sweep(name), lambda: bare.build()]
            inside: list[float] = []
            alone, whole, building = common.in_turn(sides, options.rounds, device)
            over = [(w - b) / i - 1 for w, b, i in zip(whole, building, inside[1:])]
            rows.append([name, *(f"{median(times):.2f}" for times in (
                alone, inside[1:], whole, building)), f"{median(over):.1%}"])
    finally:
        shutil.rmtree(root)
    lines = common.table(["method", "method alone, s", "in the sweep, s", "sweep, s",
                          "of that building, s", "overhead"], rows)
    lines += ["", f"{options.images} images under each of {len(options.corruptions)} corruptions. "
              "Overhead: the sweep without building data set, backbone and method, over the method "
              f"in it, less one; medians of {options.rounds} rounds in turn."]
    common.publish(f"Overhead of a sweep, {options.cfg}", lines, device, options.append)


class Bare:
    """The first row of a config on its streams, without the sweep around it."""

    def __init__(self, cfg: config.CfgNode, device: torch.device) -> None:
        self.cfg = cfg
        self.device = device
        self.build()
        wanted = domains(cfg.DATASET, cfg.CORRUPTIONS, cfg.SEVERITY)
        self.streams = [[to_device(batch.images, device) for batch in Stream(
            self.dataset, [domain], num_images=cfg.NUM_IMAGES, batch_size=cfg.BATCH_SIZE,
            seed=cfg.SEEDS[0], order=cfg.ORDER, concentration=cfg.DIRICHLET)] for domain in wanted]

    def build(self) -> None:
        """Data set, backbone and method, as the sweep builds them."""
        cfg, row = self.cfg, config.rows(self.cfg)[0]
        self.dataset = DATASETS.load(cfg.DATASET)(data_dir=cfg.DATA_DIR, frost_dir=None)
        section = cfg[row.needs.upper()]
        backbone = build(row.needs, section.MODEL, section.WEIGHTS,
                         class_names=self.dataset.class_names,
                         templates=templates(self.dataset.template_set), device=self.device,
                         outputs=self.dataset.outputs)
        self.method = METHODS.load(row.method)(backbone, **row.hyper_parameters).to(self.device)

    @torch.no_grad()
    def run(self) -> None:
        for batches in self.streams:
            self.method.reset()
            for images in batches:
                self.method(images).argmax(-1).cpu()


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--cfg", default="cfgs/digits_c/all.yaml")
    parser.add_argument("--methods", nargs="+", default=["apm", "tpt", "ttt_mae"],
                        help="without a source data set")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--corruptions", nargs="+", default=["gaussian_noise", "fog"])
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
