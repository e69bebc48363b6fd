"""The command line: `tta-apm --cfg FILE [KEY VALUE ...]` runs a sweep, `tta-apm table` prints it.

Each command imports what it needs when it needs it: help and config errors answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tta_apm import __version__
from tta_apm.console import INTERRUPTED, Interrupts, die_quietly_from_now_on, protect_output
from tta_apm.errors import UserError, beyond_the_machine, nearest
from tta_apm.metrics import METRICS
from tta_apm.names import clean_lines

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from tta_apm.bench.plan import Cell
    from tta_apm.data.dataset import DataSet

OK, FAILED_CELLS, BAD_INPUT = 0, 1, 2
# Commands with a module of their own, which has main(words).
BESIDE = {"plot": "tta_apm.commands.plot", "data": "tta_apm.commands.data",
          "host": "tta_apm.commands.host", "import": "tta_apm.commands.imports",
          "export": "tta_apm.commands.export",
          "pretrain": "tta_apm.commands.pretrain", "islands": "tta_apm.commands.islands",
          "reconstruct": "tta_apm.commands.reconstruct",
          "interpolate": "tta_apm.commands.interpolate", "query": "tta_apm.commands.query",
          "cost": "tta_apm.commands.cost"}
# Commands that torchrun may start several times over.
SHARED = ("pretrain", "host")

EPILOG = """\
examples:
  tta-apm --cfg cfgs/digits_c/all.yaml             all methods side by side, to a table
  tta-apm --cfg cfgs/digits_c/apm.yaml SEVERITY [1,2,3,4,5] APM.STEPS 30
  tta-apm table results/digits_c                   the tables again, from the files
  tta-apm plot results/digits_c                    pictures of them
  tta-apm cost --cfg cfgs/digits_c/all.yaml        FLOPs, memory, time; the paper's beside them
  tta-apm data check, get, make --help             data sets: what is here, what to get
  tta-apm host, import, export --help              other people's benchmarks and leaderboards
  tta-apm pretrain, islands, reconstruct, interpolate, query --help
                                                   a student of your own and the field it learns
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (1: cells failed, 2: bad input)."""
    # timm's import uses what newer torch deprecates: nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    with Interrupts() as interrupts:
        try:
            protect_output()
            return _command(list(sys.argv[1:] if arguments is None else arguments))
        except UserError as error:
            if not interrupts.came:
                print(f"tta-apm: {clean_lines(str(error))}", file=sys.stderr)
                return BAD_INPUT
        except KeyboardInterrupt:
            pass
        except Exception as error:  # of code that takes an interrupt for something else
            if not interrupts.came:
                sentence = beyond_the_machine(error)
                if sentence is None:
                    raise
                print(f"tta-apm: {clean_lines(sentence)}", file=sys.stderr)
                return BAD_INPUT
        print("\nStopped: what is whole is kept; the same command goes on from there.",
              file=sys.stderr)
        return INTERRUPTED


def main_of_process() -> int:
    """As `main`, of a process that ends with it."""
    code = main()
    die_quietly_from_now_on()
    return code


def _command(words: list[str]) -> int:
    name = words[0] if words else ""
    if name not in SHARED and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        if int(os.environ.get("RANK") or 0) == 0:
            raise UserError("this command is one process, and would do everything as often as "
                            "torchrun starts it: start it without torchrun; `tta-apm pretrain` "
                            "is what torchrun can share")
        return BAD_INPUT
    _check_tqdm()
    if name in BESIDE:
        return int(importlib.import_module(BESIDE[name]).main(words[1:]))
    commands = {"run": _run, "table": _table}
    options = any(word.startswith(("--cfg", "-h", "--help", "--version")) for word in words)
    if name and name not in commands and not options:
        raise UserError(f"unknown command {name!r}: {nearest(name, {*commands, *BESIDE})}")
    command = words.pop(0) if name in commands else "run"
    return commands[command](_parser(command).parse_intermixed_args(words))


def _check_tqdm() -> None:
    """UserError for a TQDM_ variable that tqdm cannot read, with which nothing could start."""
    try:
        importlib.import_module("tqdm")
    except ValueError as error:
        names = ", ".join(name for name in os.environ if name.startswith("TQDM_"))
        raise UserError(f"the environment's {names}: {error}; unset it") from error


def _parser(command: str) -> argparse.ArgumentParser:
    if command == "table":
        parser = argparse.ArgumentParser(
            prog="tta-apm table", description="Rebuild the tables of a results folder.")
        parser.add_argument("results", type=Path, help="the OUTPUT_DIR of a sweep")
        parser.add_argument("--metric", choices=METRICS,
                            help="default: that of the run")
        parser.add_argument("--published", action="store_true",
                            help="show the paper's rows below ours, where it has such a table")
        return parser
    parser = argparse.ArgumentParser(
        prog="tta-apm", description="Run test-time adaptation methods over a benchmark and print "
        "their table. What is recorded already is not run again.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a file of configs/")
    parser.add_argument("--corrupt", action="store_true",
                        help="CORRUPT true: make the corruptions on the fly from clean images")
    parser.add_argument("--dry-run", action="store_true",
                        help="list what would run and what is there, and stop")
    parser.add_argument("--redo", action="store_true",
                        help="replace cells that were made under another config or other code")
    parser.add_argument("--version", action="version", version=f"tta-apm {__version__}")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE",
                        help="overrides of the config, e.g. SEVERITY 3 APM.STEPS 30")
    return parser


def _run(options: argparse.Namespace) -> int:
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
    """Run what is missing and make the tables, with no other process at work in `folder`."""
    from tta_apm.bench.identity import Images
    from tta_apm.bench.plan import missing, plan
    from tta_apm.bench.records import find_records

    # A list of what would run needs no images where there is nothing to compare them with.
    needs_images = not options.dry_run or any(find_records(folder / "cells"))
    dataset, reason = _dataset(cfg) if needs_images else (None, None)
    cells = plan(cfg, dataset)
    images = None if dataset is None else Images(dataset, cfg.NUM_IMAGES, cfg.TEMPLATES)
    todo = missing(cells, folder, redo=options.redo, images=images)
    if options.dry_run:
        absent = {cell.name for cell in todo}
        for cell in cells:
            print(f"{'would run' if cell.name in absent else 'is there '}  {cell.name}")
        print(f"{len(cells)} cells in {folder}: {len(cells) - len(todo)} are there, "
              f"{len(todo)} would run")
        return OK
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
    if len(failed) < len(cells):  # else there may be nothing to make a table of
        _show_tables(folder)
    if failed:
        print(f"{len(failed)} of {len(cells)} cells FAILED and are missing in the table: "
              f"{', '.join(failed)}. The same command tries them again.", file=sys.stderr)
        return FAILED_CELLS
    return OK


def _table(options: argparse.Namespace) -> int:
    _show_tables(options.results, metric=options.metric or "", published=options.published)
    return OK


def _dataset(cfg: CfgNode) -> tuple[DataSet | None, UserError | None]:
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

    try:
        with atomic_path(folder / "config.yaml") as temporary:
            temporary.write_bytes(text.encode())
    except OSError as error:
        raise UserError(f"cannot write to OUTPUT_DIR {folder}: {error.strerror}; set OUTPUT_DIR to "
                        "a folder of yours") from error


def _show_tables(folder: Path, metric: str = "", published: bool = False) -> None:
    """Print the tables of a folder, then write them there: where nothing can be written, too."""
    from tta_apm.report.write import make_tables

    tables = make_tables(folder, metric=metric, published=published)
    print(tables.terminal)
    tables.write(folder)
    *others, last = tables.files
    print(f"\n{folder}/{', '.join(others)} and {last} hold this.")


if __name__ == "__main__":
    sys.exit(main_of_process())
