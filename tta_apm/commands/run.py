"""`tta-apm run`: methods over a benchmark, to records and a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tta_apm import __version__
from tta_apm.cli import FAILED_CELLS, INTERRUPTED, OK, overview
from tta_apm.commands import options as shared
from tta_apm.commands.table import show_tables
from tta_apm.errors import UserError, writing

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from tta_apm.bench.plan import Cell
    from tta_apm.data.dataset import DataSet

EXAMPLES = """\
examples:
  tta-apm --cfg cfgs/digits_c/all.yaml             all methods side by side, to a table
  tta-apm --cfg cfgs/digits_c/apm.yaml SEVERITY [1,2,3,4,5] APM.STEPS 30
  tta-apm table results/digits_c                   the tables again, from the files
  tta-apm COMMAND --help                           what a command takes
"""


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = shared.make_parser(
        "", "Run test-time adaptation methods over a benchmark and print their table. What is "
        "recorded already is not run again.", f"{overview()}\n\n{EXAMPLES}")
    shared.add_config(parser, "configs/", "SEVERITY 3 APM.STEPS 30")
    parser.add_argument("--corrupt", action="store_true",
                        help="CORRUPT true: make the corruptions on the fly from clean images")
    parser.add_argument("--dry-run", action="store_true",
                        help="list what would run and what is there, and stop")
    parser.add_argument("--redo", action="store_true",
                        help="replace cells that were made under another config or other code")
    parser.add_argument("--version", action="version", version=f"tta-apm {__version__}")
    return parser


def run(options: argparse.Namespace) -> int:
    """Run what is missing in OUTPUT_DIR and print the tables."""
    from tta_apm import config
    from tta_apm.atomic import require_path
    from tta_apm.lock import locked

    cfg = config.load(options.cfg,
                      [*options.overrides, *(["CORRUPT", "true"] if options.corrupt else [])])
    folder = Path(cfg.OUTPUT_DIR)
    require_path(folder / "cells", "OUTPUT_DIR")
    with nullcontext() if options.dry_run else locked(folder, cfg.dump()):
        return _run_alone(options, cfg, folder)


def _run_alone(options: argparse.Namespace, cfg: CfgNode, folder: Path) -> int:
    """As `run`, with no other process at work in `folder`."""
    from tta_apm.bench.identity import Images
    from tta_apm.bench.plan import missing, plan
    from tta_apm.bench.records import find_records, remove_cell

    # A list of what would run needs no images where there is nothing to compare them with.
    needs_images = not options.dry_run or any(find_records(folder / "cells"))
    dataset, reason = find_dataset(cfg) if needs_images else (None, None)
    cells = plan(cfg, dataset)
    images = None if dataset is None else Images(dataset, cfg.NUM_IMAGES, cfg.TEMPLATES)
    todo = missing(cells, folder, redo=options.redo, images=images)
    if options.dry_run:
        return _list(cells, todo, folder)
    if cfg.PAPER.TABLE:  # a wrong name is told before hours of work
        from tta_apm.report.ablations import Paper, paper_rows
        paper_rows(Paper(cfg.PAPER.TABLE, cfg.PAPER.ROWS, cfg.METHODS))
    # Before torch is imported and before anything is written: the likeliest thing to be missing.
    if reason and todo:
        raise reason
    if reason:
        print(f"The images were not looked at: {reason}", file=sys.stderr)
    try:
        _save_config(cfg.dump(), folder)
    except UserError:
        if todo:
            raise  # else a folder that can only be read is shown all the same
    failed: list[str] = []
    if todo:
        assert dataset is not None  # else the reason was raised
        try:
            failed = _sweep(cfg, cells, todo, folder, dataset)
        except KeyboardInterrupt:
            left = len(missing(cells, folder, redo=options.redo, images=images))
            print(f"\nStopped: {len(cells) - left} of {len(cells)} cells are done and kept in "
                  f"{folder}; the same command goes on from there.", file=sys.stderr)
            return INTERRUPTED
    if options.redo:  # what could not be made again is no result of this config
        for cell in cells:
            if cell.name in failed:
                remove_cell(cell.path(folder))
    if len(failed) < len(cells):  # else there may be nothing to make a table of
        show_tables(folder)
    if failed:
        print(f"{len(failed)} of {len(cells)} cells FAILED and are missing in the table: "
              f"{', '.join(failed)}. The same command tries them again.", file=sys.stderr)
        return FAILED_CELLS
    return OK


def _list(cells: Sequence[Cell], todo: Sequence[Cell], folder: Path) -> int:
    absent = {cell.name for cell in todo}
    for cell in cells:
        print(f"{'would run' if cell.name in absent else 'is there '}  {cell.name}")
    print(f"{len(cells)} cells in {folder}: {len(cells) - len(todo)} are there, "
          f"{len(todo)} would run")
    return OK


def find_dataset(cfg: CfgNode) -> tuple[DataSet | None, UserError | None]:
    """The data set, or why it is not here: what is recorded can be shown without it."""
    from tta_apm.data.load import load_dataset
    from tta_apm.data.streams import domains

    try:
        return load_dataset(cfg.DATASET, data_dir=cfg.DATA_DIR, frost_dir=cfg.FROST_DIR,
                            corrupt=cfg.CORRUPT, constants=cfg.CORRUPTION_CONSTANTS,
                            domains=domains(cfg.DATASET, cfg.CORRUPTIONS, cfg.SEVERITY)), None
    except UserError as error:
        return None, error


def _sweep(cfg: CfgNode, cells: Sequence[Cell], todo: Sequence[Cell], folder: Path,
           dataset: DataSet) -> list[str]:
    from tta_apm.bench.sweep import Sweep

    print(f"{len(todo)} of {len(cells)} cells to run, results in {folder}", flush=True)
    return Sweep(cfg, cells, todo, folder, dataset).run()


def _save_config(text: str, folder: Path) -> None:
    from tta_apm.atomic import atomic_path

    with writing(f"to OUTPUT_DIR {folder}", "set OUTPUT_DIR to a folder of yours"), \
            atomic_path(folder / "config.yaml") as temporary:
        temporary.write_bytes(text.encode())
