"""The command line: the table of commands, their exit codes, and the place that prints errors.

Each command is a module of `tta_apm.commands` with make_parser() and run(options). It is imported
only when it is called, so that help and config errors are printed at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tta_apm.console import Interrupts, finish_quickly, protect_output
from tta_apm.errors import UserError, resource_error, choose
from tta_apm.names import clean_lines

# Exit codes.
OK = 0
FAILED_CELLS = 1  # some cells failed, the others are recorded
INCOMPLETE = 1  # something that was named is incomplete, was skipped or was declined
BAD_INPUT = 2  # argparse uses the same code
INTERRUPTED = 130  # by Ctrl-C; by another signal, 128 + its number


class Command(NamedTuple):
    """A command: its module in `tta_apm.commands`, and its help in one line."""

    module: str
    help: str
    shared: bool = False  # torchrun may start several processes of it
    passes_on: bool = False  # the arguments after `--` go to another program: options.passed_on


COMMANDS = {
    "run": Command("run", "evaluate methods and print the table; the word `run` may be left out"),
    "table": Command("table", "print the tables of a results folder again"),
    "status": Command("status", "print how far a sweep is: cells done, failed, missing, time left"),
    "plot": Command("plot", "draw the results of a folder"),
    "cost": Command("cost", "measure parameters, FLOPs, memory and time of methods; Table 4"),
    "data check": Command("data_check", "check which data sets are here, and where to get them"),
    "data get": Command("data_get", "download a corrupted data set"),
    "data make": Command("data_make", "corrupt a clean data set and save the images"),
    "host": Command("host", "run our methods inside another repository's benchmark", shared=True,
                    passes_on=True),
    "import": Command("imports", "import results of other repositories, to show them beside ours"),
    "export": Command("export", "export results: CSV, LaTeX, leaderboards, BibTeX"),
    "train": Command("train", "train a small backbone or prompt context, for digits or CIFAR-10"),
    "pretrain": Command("pretrain", "train a student on a folder of images (Section 5)",
                        shared=True),
    "islands": Command("islands", "draw a student's features of all columns"),
    "reconstruct": Command("reconstruct", "draw a student's reconstructions of images"),
    "interpolate": Command("interpolate", "draw the reconstructions between two images"),
    "query": Command("query", "compute single columns of a student"),
}
# A command line that starts with one of these is one of `run`.
RUN_OPTIONS = ("--cfg", "-h", "--help", "--version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; argparse raises SystemExit for help and bad usage.

    Args:
        arguments: those of the command line by default.
    """
    # timm's import calls functions that newer torch deprecates: a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    with Interrupts() as interrupts:
        try:
            protect_output()
            code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
            return interrupts.exit_code if code == INTERRUPTED else code
        except KeyboardInterrupt:
            pass
        except Exception as error:
            if not interrupts.number:  # else a library turned our KeyboardInterrupt into this error
                sentence = (str(error) if isinstance(error, UserError)
                            else resource_error(error))
                if sentence is None:
                    raise
                print(f"tta-apm: {clean_lines(sentence)}", file=sys.stderr)
                return BAD_INPUT
        print("\nStopped: what is complete is kept; the same command goes on from there.",
              file=sys.stderr)
        return interrupts.exit_code


def main_of_process() -> int:
    """As `main`, for a process that exits afterwards."""
    code = main()
    finish_quickly()
    return code


def overview(names: Iterable[str] = COMMANDS) -> str:
    """A help text with one line per command."""
    return "\n".join(["commands:", *(f"  tta-apm {name:<12} {COMMANDS[name].help}"
                                     for name in names)])


def _dispatch(words: Sequence[str]) -> int:
    name, words = _find(words)
    command = COMMANDS[name]
    if not command.shared and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        if int(os.environ.get("RANK") or 0) == 0:
            raise UserError("torchrun would start this command several times over the same work: "
                            "start it without torchrun (only `tta-apm pretrain` and `tta-apm host` "
                            "take it)")
        return BAD_INPUT
    _check_tqdm()
    module = importlib.import_module(f"tta_apm.commands.{command.module}")
    end = words.index("--") if command.passes_on and "--" in words else len(words)
    options = module.make_parser().parse_intermixed_args(words[:end])
    options.passed_on = words[end + 1:]
    return int(module.run(options))


def _find(words: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command in `words`, and its arguments."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, list(words[count:])
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")] if words else []
    if group:
        if {"-h", "--help"} & set(words):
            print(overview(group))
            raise SystemExit(OK)
        choose("", "command", " ".join(words[:2]), group)
    if words and not any(word.startswith(RUN_OPTIONS) for word in words):
        choose("", "command", words[0], COMMANDS)
    return "run", list(words)


def _check_tqdm() -> None:
    """Raise UserError for a TQDM_ environment variable that tqdm cannot read when imported."""
    try:
        importlib.import_module("tqdm")
    except ValueError as error:
        names = ", ".join(name for name in os.environ if name.startswith("TQDM_"))
        raise UserError(f"the environment's {names}: {error}; unset it") from error


if __name__ == "__main__":
    sys.exit(main_of_process())
