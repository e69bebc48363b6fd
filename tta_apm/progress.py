"""Progress of long work: a bar on a terminal; in a log file, one line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

INTERVAL = 5.0  # seconds


def bar(total: int, unit: str, label: str = "", start: int = 0) -> tqdm | Lines:
    """A progress bar over `total` units, of which `start` are done; use it in a `with` block."""
    if sys.stderr.isatty():
        return tqdm(total=total or None, initial=start, unit=unit, desc=label or None,
                    dynamic_ncols=True, leave=False)
    return Lines(total, unit, label, start)


class Lines:
    """Prints lines with the content of tqdm's bar, where standard error is not a terminal."""

    def __init__(self, total: int, unit: str, label: str, start: int) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.start = self.done = start
        self.note = ""
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown >= INTERVAL:
            self.shown = now
            self.write(self._line(now - self.began), sys.stderr)

    def reset(self) -> None:
        """Count from the start again; pooch calls this before it reports the total."""
        self.done = self.start

    def set_description(self, label: str) -> None:
        self.label = label

    def set_postfix_str(self, note: str, refresh: bool = False) -> None:
        self.note = note

    def write(self, line: str, file: TextIO | None = None) -> None:
        print(line, file=file, flush=True)

    def close(self) -> None:
        """Print nothing: the caller prints the result."""

    def _line(self, seconds: float) -> str:
        of_all = f" of {self.total:,}" if self.total else ""
        line = f"{self.done:,}{of_all} {self.unit}"
        if self.label:
            line = f"{self.label}: {line}"
        rate = (self.done - self.start) / seconds
        if rate > 0:
            line += f", {rate:,.3g} {self.unit}/s"
            if self.total:
                line += f", {tqdm.format_interval(max(self.total - self.done, 0) / rate)} left"
        return f"{line}, {self.note}" if self.note else line
