"""The command line: `tta-apm --cfg FILE [KEY VALUE ...]` runs a sweep, `tta-apm table` prints it.

Each command imports what it needs when it needs it: help and config errors answer at once.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tta_apm import __version__
from tta_apm.errors import UserError

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from tta_apm.bench.cells import Cell

OK, FAILED_CELLS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
examples:
  tta-apm --cfg cfgs/digits_c/all.yaml             all methods side by side, to a table
  tta-apm --cfg cfgs/digits_c/apm.yaml SEVERITY [1,2,3,4,5] APM.STEPS 30
  tta-apm table results/digits_c                   the tables again, from the files
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (1: cells failed, 2: bad input)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"run": _run, "table": _table}
    command = words.pop(0) if words and words[0] in commands else "run"
    options = _parser(command).parse_args(words)
    try:
        return commands[command](options)
    except UserError as error:
        print(f"tta-apm: {error}", file=sys.stderr)
        return BAD_INPUT


def _parser(command: str) -> argparse.ArgumentParser:
    if command == "table":
        parser = argparse.ArgumentParser(
            prog="tta-apm table", description="Rebuild the tables of a results folder.")
        parser.add_argument("results", type=Path, help="the OUTPUT_DIR of a sweep")
        parser.add_argument("--metric", choices=("error", "accuracy"),
                            help="default: that of the run")
        return parser
    parser = argparse.ArgumentParser(
        prog="tta-apm", description="Run test-time adaptation methods over a benchmark and print "
        "their table. What is recorded already is not run again.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a file of configs/")
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
    from tta_apm.bench.cells import missing, plan

    cfg = config.load(options.cfg, options.overrides)
    folder = Path(cfg.OUTPUT_DIR)
    cells = plan(cfg)
    todo = missing(cells, folder, redo=options.redo)
    if options.dry_run:
        absent = {cell.name for cell in todo}
        for cell in cells:
            print(f"{'would run' if cell.name in absent else 'is there '}  {cell.name}")
        print(f"{len(cells)} cells in {folder}: {len(cells) - len(todo)} are there, "
              f"{len(todo)} would run")
        return OK
    _save_config(cfg.dump(), folder)
    failed: list[str] = []
    if todo:
        try:
            failed = _sweep(cfg, cells, todo, folder)
        except KeyboardInterrupt:
            left = len(missing(cells, folder))
            print(f"\nStopped: {len(cells) - left} of {len(cells)} cells are done and kept in "
                  f"{folder}; the same command goes on from there.", file=sys.stderr)
            return INTERRUPTED
    _write_tables(folder, cfg.METRIC, cfg.METHODS,
                  [(cell.domain.corruption, cell.domain.severity) for cell in cells])
    if failed:
        print(f"{len(failed)} of {len(cells)} cells FAILED and are missing in the table: "
              f"{', '.join(failed)}. The same command tries them again.", file=sys.stderr)
        return FAILED_CELLS
    return OK


def _table(options: argparse.Namespace) -> int:
    saved = _saved_config(options.results)
    _write_tables(options.results, options.metric or saved.get("METRIC", "error"),
                  saved.get("METHODS", []), None)
    return OK


def _sweep(cfg: CfgNode, cells: Sequence[Cell], todo: Sequence[Cell], folder: Path) -> list[str]:
    # timm's import uses what newer torch deprecates: nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    from tta_apm.bench.sweep import Sweep

    print(f"{len(todo)} of {len(cells)} cells to run, results in {folder}", flush=True)
    return Sweep(cfg, cells, todo, folder).run()


def _save_config(text: str, folder: Path) -> None:
    from tta_apm.bench.records import write_aside

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / "config.yaml", text.encode())
    except OSError as error:
        raise UserError(f"cannot write to OUTPUT_DIR {folder}: {error.strerror}; set OUTPUT_DIR to "
                        "a folder of yours") from error


def _saved_config(folder: Path) -> dict[str, Any]:
    """The config that the last run left in a results folder, {} if it is not there or not ours."""
    import yaml

    try:
        content = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_tables(folder: Path, metric: str, methods: Sequence[str],
                  wanted: Sequence[tuple[str, int]] | None) -> None:
    from tta_apm.report.tables import write_tables

    print(write_tables(folder, metric=metric, methods=methods, wanted=wanted))
    print(f"\n{folder}/table.md, table.csv and table.tex hold this table.")


if __name__ == "__main__":
    sys.exit(main())
