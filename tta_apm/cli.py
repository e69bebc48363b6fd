"""The command line: one table of commands, their exit codes, and where an error becomes a sentence.

Each command is a module of `tta_apm.commands` with make_parser() and run(options), imported when
it is asked for: help and config errors answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tta_apm.console import Interrupts, die_quickly_from_now_on, protect_output
from tta_apm.errors import UserError, beyond_the_machine, choose
from tta_apm.names import clean_lines

# Exit codes.
OK = 0
FAILED_CELLS = 1  # some cells failed, the others are recorded
INCOMPLETE = 1  # something that was named is not in order, was skipped or declined
BAD_INPUT = 2  # argparse's own code, too
INTERRUPTED = 130  # by Ctrl-C; by another signal, 128 and its number


class Command(NamedTuple):
    """A command: its module in `tta_apm.commands`, and what it does in a line."""

    module: str
    help: str
    shared: bool = False  # torchrun may start it several times over
    passes_on: bool = False  # what follows `--` is for another program: options.passed_on


COMMANDS = {
    "run": Command("run", "methods over a benchmark, to a table; the word `run` may be left out"),
    "table": Command("table", "the tables of a results folder again, from its files"),
    "status": Command("status", "how far a sweep is: done, failed, missing, time left"),
    "plot": Command("plot", "pictures of a results folder"),
    "cost": Command("cost", "FLOPs, memory and time of methods; the paper's beside them"),
    "data check": Command("data_check", "which data sets are here and in order, where to get them"),
    "data get": Command("data_get", "download a corrupted data set"),
    "data make": Command("data_make", "corrupt a clean data set, once, into files"),
    "host": Command("host", "our methods inside another repository's benchmark", shared=True,
                    passes_on=True),
    "import": Command("imports", "results of other repositories, put beside ours"),
    "export": Command("export", "results in the formats of others: CSV, LaTeX, leaderboards"),
    "train": Command("train", "the small backbones and contexts that ship, or those of CIFAR-10"),
    "pretrain": Command("pretrain", "train a student of your own (Section 5)", shared=True),
    "islands": Command("islands", "a student's features of all columns, as a picture"),
    "reconstruct": Command("reconstruct", "images as a student gives them back"),
    "interpolate": Command("interpolate", "from one image to another, as a strip and a film"),
    "query": Command("query", "single columns of a student"),
}
# Words that mean `run` where no command is named.
OF_RUN = ("--cfg", "-h", "--help", "--version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. SystemExit of argparse: help, usage errors."""
    # timm's import uses what newer torch deprecates: nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    with Interrupts() as interrupts:
        try:
            protect_output()
            code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
            return interrupts.exit_code if code == INTERRUPTED else code
        except KeyboardInterrupt:
            pass
        except Exception as error:
            if not interrupts.number:  # else it is of code that takes a signal for something else
                sentence = (str(error) if isinstance(error, UserError)
                            else beyond_the_machine(error))
                if sentence is None:
                    raise
                print(f"tta-apm: {clean_lines(sentence)}", file=sys.stderr)
                return BAD_INPUT
        print("\nStopped: what is whole is kept; the same command goes on from there.",
              file=sys.stderr)
        return interrupts.exit_code


def main_of_process() -> int:
    """As `main`, of a process that ends with it."""
    code = main()
    die_quickly_from_now_on()
    return code


def overview(names: Iterable[str] = COMMANDS) -> str:
    """A line for each command."""
    return "\n".join(["commands:", *(f"  tta-apm {name:<12} {COMMANDS[name].help}"
                                     for name in names)])


def _dispatch(words: Sequence[str]) -> int:
    name, words = _find(words)
    command = COMMANDS[name]
    if not command.shared and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        if int(os.environ.get("RANK") or 0) == 0:
            raise UserError("this command is one process, and would do everything as often as "
                            "torchrun starts it: start it without torchrun; `tta-apm pretrain` "
                            "is what torchrun can share")
        return BAD_INPUT
    _check_tqdm()
    module = importlib.import_module(f"tta_apm.commands.{command.module}")
    end = words.index("--") if command.passes_on and "--" in words else len(words)
    options = module.make_parser().parse_intermixed_args(words[:end])
    options.passed_on = words[end + 1:]
    return int(module.run(options))


def _find(words: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command that `words` ask for, and what comes after it."""
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
    if words and not any(word.startswith(OF_RUN) for word in words):
        choose("", "command", words[0], COMMANDS)
    return "run", list(words)


def _check_tqdm() -> None:
    """UserError for a TQDM_ variable that tqdm cannot read, with which nothing could start."""
    try:
        importlib.import_module("tqdm")
    except ValueError as error:
        names = ", ".join(name for name in os.environ if name.startswith("TQDM_"))
        raise UserError(f"the environment's {names}: {error}; unset it") from error


if __name__ == "__main__":
    sys.exit(main_of_process())
