"""`tta-apm cost`: measure the parameters, FLOPs, memory and time of methods."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tta_apm.atomic import atomic_write
from tta_apm.cli import OK
from tta_apm.commands import options as shared
from tta_apm.errors import UserError

if TYPE_CHECKING:
    import torch
    from yacs.config import CfgNode

CPU_IMAGES = 2

EXAMPLES = """\
examples:
  tta-apm cost --cfg cfgs/digits_c/all.yaml
  tta-apm cost --cfg cfgs/imagenet_c/all.yaml --classes 1000 METHODS [tpt,apm] APM.PRESET slim
  tta-apm cost --figure2 --out figure2
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser(
        "cost", "Measure the cost of a config's methods, on random weights and images: nothing is "
        "downloaded. The models of the paper's Table 4 follow below.", EXAMPLES)
    shared.add_config(parser, "configs/", "APM.PRESET slim", required=False)
    parser.add_argument("--images", type=int, metavar="N", help="images per call when a method is "
                        f"timed; default: {CPU_IMAGES} on a CPU, else BATCH_SIZE")
    parser.add_argument("--classes", type=int, metavar="K", help="use the names of K classes of "
                        "ImageNet; the data set is then not needed")
    parser.add_argument("--figure2", action="store_true",
                        help="draw Figure 2: cost against patches processed at a time")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="write the tables, their numbers as .csv, and the picture there")
    return parser


def run(options: argparse.Namespace) -> int:
    """Measure and print the cost of a config's methods and Table 4, or draw Figure 2, or both."""
    if not options.cfg and not options.figure2:
        raise UserError("cost: give --cfg FILE, --figure2 or both")
    if options.figure2 and not options.out:
        raise UserError("cost: --figure2 needs a folder to draw into: --out FOLDER")
    if options.cfg:
        _tables(options)
    if options.figure2:
        _figure_2(options)
    return OK


def _tables(options: argparse.Namespace) -> None:
    from tta_apm import config

    cfg = config.load(options.cfg, options.overrides)
    names = _class_names(cfg, options.classes)
    recorded = _recorded(cfg)

    import pandas as pd

    from tta_apm.cost import paper, table
    from tta_apm.cost.methods import Costs
    from tta_apm.device import choose_device
    from tta_apm.report.formats.csv import csv_of

    device = choose_device(cfg.DEVICE)
    costs = Costs(cfg, names, device)
    num_images = options.images or (CPU_IMAGES if device.type == "cpu" else cfg.BATCH_SIZE)
    measured = []
    for row in config.rows(cfg):
        print(f"measuring {row.text} ...", file=sys.stderr, flush=True)
        try:
            measured.append(costs.measure(row, num_images))
        except UserError as error:  # e.g. a learned context is not found: measure the others
            print(f"{row.text} is left out: {error}", file=sys.stderr)
    print("measuring the models of Table 4 ...", file=sys.stderr, flush=True)
    printed = paper.table_4()
    text = "\n\n".join([
        f"{options.cfg}, {len(names)} classes, {_machine(device)}",
        table.method_table(measured) if measured else "No method could be measured.",
        table.CONVENTIONS, *recorded, table.table_4(printed), table.TABLE_4_CONVENTIONS])
    print(text)
    _write(options.out, {"cost.md": text + "\n", "cost.csv": csv_of(pd.DataFrame(measured)),
                         "table4.csv": pd.DataFrame(printed).to_csv(index=False)})


def _recorded(cfg: CfgNode) -> list[str]:
    """A heading and a table of the costs that a run of the config recorded; empty without a run."""
    from tta_apm.cost.table import recorded_table
    from tta_apm.report.build import build_tables
    from tta_apm.report.results import CELLS, load_rows

    folder = Path(cfg.OUTPUT_DIR)
    if not (folder / CELLS).is_dir():
        return []
    tables = [table for table in build_tables(load_rows(folder)) if table.dataset == cfg.DATASET]
    wanted = set(cfg.METHODS)
    text = recorded_table([line for table in tables[-1:] for line in table.lines
                           if line.protocol.row in wanted])
    return [f"Recorded in {folder}, on real images:", text] if text else []


def _class_names(cfg: CfgNode, count: int | None) -> Sequence[str]:
    from tta_apm.data.imagenet_classes import class_names
    from tta_apm.registry import DATASETS

    if count is not None:
        if not 1 <= count <= len(class_names()):
            raise UserError(f"--classes {count}: give 1 to {len(class_names())}")
        return class_names()[:count]
    try:
        dataset = DATASETS.load(cfg.DATASET)(data_dir=cfg.DATA_DIR, frost_dir=None)
    except UserError as error:
        raise UserError(f"{error}. To measure without the data set give --classes K") from error
    return dataset.class_names


def _figure_2(options: argparse.Namespace) -> None:
    import pandas as pd

    from tta_apm.cost import paper
    from tta_apm.cost.figure2 import draw_figure_2
    from tta_apm.device import choose_device

    print("measuring Figure 2 ...", file=sys.stderr, flush=True)
    device = choose_device("auto")
    costs = paper.figure_2(device)
    _write(options.out, {"figure2.csv": pd.DataFrame(costs).to_csv(index=False)})
    print(draw_figure_2(costs, options.out / "figure2.png", _machine(device)))


def _machine(device: torch.device) -> str:
    import torch

    from tta_apm.device import describe

    return f"{describe(device)}, torch {torch.__version__}"


def _write(folder: Path | None, files: dict[str, str]) -> None:
    if folder is None:
        return
    for name, content in files.items():
        atomic_write(folder / name, content.encode())
