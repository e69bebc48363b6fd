"""Functions for all benchmarks: timing sides in turn, the machine, tables and RESULTS.md."""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tta_apm.bench.measure import synchronize
from tta_apm.device import describe

RESULTS = Path(__file__).with_name("RESULTS.md")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks; `doc` is the module's docstring."""
    options = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--rounds", type=int, default=3, help="runs of each side, in turn")
    options.add_argument("--append", action="store_true",
                         help="append what is printed to RESULTS.md")
    return options


def machine(device: torch.device, packages: Sequence[str] = ("torch", "open_clip_torch")) -> str:
    """The device, threads and versions of packages of a measurement, in words."""
    return ", ".join([describe(device), f"Python {platform.python_version()}",
                      *(f"{name.removesuffix('_torch')} {version(name)}" for name in packages)])


def in_turn(sides: Sequence[Callable[[], object]], rounds: int, device: torch.device,
            warm: bool = True, clock: Callable[[], float] = time.perf_counter
            ) -> list[list[float]]:
    """Seconds of each side in each round.

    The sides take turns, so that other load on the machine affects all of them. With `warm`, each
    runs once before.
    """
    for side in sides if warm else ():
        side()
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, times in zip(sides, seconds):
            synchronize(device)
            begin = clock()
            side()
            synchronize(device)
            times.append(clock() - begin)
    return seconds


@contextmanager
def classified_by(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """A context that collects the features of each call of `backbone.classify`."""
    classify = getattr(backbone, "classify")
    kept: list[Tensor] = []

    def keep(features: Tensor) -> Tensor:
        kept.append(features)
        return classify(features)
    with patch.object(backbone, "classify", keep):
        yield kept


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """The ratio `slow` / `fast` of each round: median and range, in words."""
    ratios = sorted(a / b for a, b in zip(slow, fast))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; columns after the first are aligned to the right."""
    from tta_apm.report.formats.markdown import pipe_table

    return pipe_table(head, rows, text=1).splitlines()


def publish(title: str, lines: Sequence[str], device: torch.device, append: bool) -> None:
    """Print a result with its command and machine, and append it to RESULTS.md if asked to."""
    command = f"python benchmarks/{Path(sys.argv[0]).name} " + shlex.join(
        word for word in sys.argv[1:] if word != "--append")
    text = "\n".join([f"## {title}", "", f"`{command.strip()}` · {machine(device)}", "",
                      *lines, ""])
    print(text)
    if append:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")
