"""`tta-apm run`: evaluate methods on a benchmark, record the results and print the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tta_apm import __version__
from tta_apm.cli import FAILED_CELLS, INTERRUPTED, OK, overview
from tta_apm.commands import options as shared
from tta_apm.commands.table import show_tables
from tta_apm.errors import UserError, at_least

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from tta_apm.bench.claims import Claims
    from tta_apm.bench.job import Job
    from tta_apm.bench.launch.launcher import Launcher
    from tta_apm.bench.plan import Cell

EXAMPLES = """\
examples:
  tta-apm --cfg cfgs/digits_c/all.yaml             run all methods and print the table
  tta-apm --cfg cfgs/digits_c/apm.yaml SEVERITY [1,2,3,4,5] APM.STEPS 30
  tta-apm --cfg cfgs/imagenet_c/all.yaml --workers 4          four processes, a GPU each
  tta-apm table results/digits_c                   print the tables again
  tta-apm COMMAND --help                           the options of a command
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser(
        "", "Evaluate test-time adaptation methods on a benchmark and print their table. Recorded "
        "cells are not run again; identical commands on one folder share the work.",
        f"{overview()}\n\n{EXAMPLES}")
    shared.add_config(parser, "configs/", "SEVERITY 3 APM.STEPS 30")
    parser.add_argument("--corrupt", action="store_true",
                        help="corrupt the clean images on the fly, as CORRUPT true")
    parser.add_argument("--dry-run", action="store_true",
                        help="list the cells that would run and those recorded, and stop")
    parser.add_argument("--redo", action="store_true",
                        help="replace cells that were made under another config or with other code")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="number of processes that share the work (default: this one)")
    parser.add_argument("--launcher", metavar="NAME",
                        help="how workers are started: local (default), ray or slurm; the "
                        "section LAUNCH of a config has more options")
    parser.add_argument("--address", metavar="HOST:PORT",
                        help="the address of a running Ray cluster, or auto")
    parser.add_argument("--version", action="version", version=f"tta-apm {__version__}")
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the cells that are missing in OUTPUT_DIR and print the tables."""
    from tta_apm import config
    from tta_apm.atomic import require_path
    from tta_apm.bench.claims import Claims
    from tta_apm.bench.job import Job, has_records, shared_work

    cfg = config.load(options.cfg,
                      [*options.overrides, *(["CORRUPT", "true"] if options.corrupt else [])])
    folder = Path(cfg.OUTPUT_DIR)
    require_path(folder / "cells", "OUTPUT_DIR")
    launcher = _launcher(options, cfg)
    if options.dry_run:
        # Without records there is nothing to compare the images with, so they need not be found.
        job = Job(cfg, redo=options.redo, needs_images=has_records(folder))
        return _list(job, job.missing(), launcher, _command(options))
    with Claims(folder, shared_work(cfg), runs=launcher is None) as claims:
        return _run(Job(cfg, redo=options.redo), claims, launcher)


def _run(job: Job, claims: Claims, launcher: Launcher | None) -> int:
    """Run the missing cells, with this process's claims on the folder, and print the tables."""
    cfg, folder = job.cfg, job.folder
    todo = job.missing()
    if cfg.PAPER.TABLE:  # report a wrong name before hours of work
        from tta_apm.report.ablations import Paper, paper_rows
        paper_rows(Paper(cfg.PAPER.TABLE, cfg.PAPER.ROWS, cfg.METHODS))
    # Before torch is imported and anything is written: images are the likeliest to be missing.
    if todo:
        job.require_images()
    elif job.reason:
        print(f"The images were not checked: {job.reason}", file=sys.stderr)
    try:
        job.save_config()
    except UserError:
        if todo:
            raise  # else the tables of a read-only folder can still be printed
    failed: dict[str, str] = {}
    if todo:
        print(f"{len(todo)} of {len(job.cells)} cells to run, results in {folder}", flush=True)
        try:
            failed = (_launch(launcher, job, todo, claims) if launcher
                      else job.run(todo, claims))
        except KeyboardInterrupt:
            left = len(job.missing())
            print(f"\nStopped: {len(job.cells) - left} of {len(job.cells)} cells are done and kept "
                  f"in {folder}; {_how_to_go_on(launcher)}", file=sys.stderr)
            return INTERRUPTED
    if len(failed) < len(job.cells):  # else there may be no record at all
        show_tables(folder)
    if failed:
        print(f"{len(failed)} of {len(job.cells)} cells FAILED and are missing in the table: "
              f"{', '.join(failed)}. The same command tries them again.", file=sys.stderr)
        return FAILED_CELLS
    return OK


def _launch(launcher: Launcher, job: Job, todo: Sequence[Cell], claims: Claims
            ) -> dict[str, str]:
    """Start workers for the cells in `todo` and show their progress.

    Returns:
        The names of the cells that failed, with the reasons.
    """
    from tta_apm.bench.launch.follow import follow

    is_over = False
    try:
        print(launcher.start(launcher.orders(redo=job.redo)), flush=True)
        failed = follow(job, todo, launcher)
        is_over = True
    except UserError:
        is_over = True
        raise
    finally:
        if is_over or not launcher.outlives_command:
            launcher.stop()
            claims.release_launch(launcher.id)
    return failed


def _how_to_go_on(launcher: Launcher | None) -> str:
    if launcher and launcher.outlives_command:
        return ("the workers go on; `tta-apm status` shows their progress, and so does the same "
                "command")
    return "the same command goes on from there."


def _launcher(options: argparse.Namespace, cfg: CfgNode) -> Launcher | None:
    """The launcher that the options choose; None to run in this process."""
    if options.workers is not None:
        at_least(1, "", **{"--workers": options.workers})
    if options.launcher is None and options.workers in (None, 1):
        if options.address:
            raise UserError("--address is for --launcher ray")
        return None
    from tta_apm.bench.launch.launcher import LAUNCHERS

    name = options.launcher or "local"
    make = LAUNCHERS.load(name)
    if options.address and not make.takes_address:
        raise UserError(f"--address is for --launcher ray, not for {name}")
    if options.workers is None:
        raise UserError(f"--launcher {name}: say how many workers, e.g. --workers 4")
    launcher: Launcher = make(cfg, options.workers, options.address or "")
    return launcher


def _list(job: Job, todo: Sequence[Cell], launcher: Launcher | None, command: Sequence[str]
          ) -> int:
    """Print what would run, for --dry-run."""
    absent = {cell.name for cell in todo}
    for cell in job.cells:
        print(f"{'would run' if cell.name in absent else 'is there '}  {cell.name}")
    print(f"{len(job.cells)} cells in {job.folder}: {len(job.cells) - len(todo)} are there, "
          f"{len(todo)} would run")
    if launcher:
        units = job.units(todo)
        print(f"\n{len(units)} units for {launcher.num_workers} workers (one worker runs all of a "
              f"unit): {sum(len(names) == 1 for _, names in units)} of one cell each")
        for title, names in units:
            if len(names) > 1:
                print(f"  {title}: {len(names)} cells, {names[0]} ...")
        if script := launcher.describe(command):
            print(f"\n{script}")
    return OK


def _command(options: argparse.Namespace) -> list[str]:
    """The command line, in words, that does the work of one worker."""
    flags = [flag for flag, is_set in (("--corrupt", options.corrupt), ("--redo", options.redo))
             if is_set]
    return ["tta-apm", "--cfg", options.cfg, *flags, *options.overrides]
