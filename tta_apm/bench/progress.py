"""Progress: the progress bar and the lines that a sweep prints."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, TextIO

from tta_apm.bench.plan import Cell
from tta_apm.bench.predictions import Predictions
from tta_apm.config import Row
from tta_apm.data.dataset import Domain
from tta_apm.names import clean
from tta_apm.progress import bar

if TYPE_CHECKING:
    from tta_apm.bench.evaluate import Evaluation


class Progress:
    """A bar over the images of all rows, and one line for each finished cell."""

    def __init__(self, total: int) -> None:
        self.bar = bar(total, "img")
        self.finished = 0  # images of cells that are recorded or failed
        self.shown = 0  # images that the bar shows
        self.seen = self.correct = 0  # images of the current stream
        self.waits = False
        self.noted: set[str] = set()  # the rows that use global random generators

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def start(self, rows: Sequence[Row], domains: Sequence[Domain]) -> None:
        """Start a stream of `domains` for `rows`."""
        self.seen = self.correct = 0
        run = rows[0].text if len(rows) == 1 else f"{len(rows)} rows"
        on = str(domains[0]) if len(domains) == 1 else f"{len(domains)} domains"
        self.bar.set_description(f"{run} {on}")

    def update(self, images: int, correct: int) -> None:
        """Count images that a row has predicted, and those of them that are right."""
        self.seen += images
        self.correct += correct
        self.bar.set_postfix_str(f"error {1 - self.correct / self.seen:.1%}", refresh=False)
        self._show(self.shown + images)

    def wait(self, num_cells: int) -> None:
        """Say that other processes run the `num_cells` cells that are left."""
        if not self.waits:
            print(f"{num_cells} cells are being run by other processes: waiting for them",
                  file=sys.stderr, flush=True)
        self.waits = True

    def note_generators(self, row: Row, names: Collection[str]) -> None:
        """Say, once for each row, which global random generators its method uses."""
        if names and row.text not in self.noted:
            self.noted.add(row.text)
            self._write(f"{clean(row.text)} uses the global random generators of "
                        f"{', '.join(sorted(names))}: it is given its own, seeded with the "
                        "row's seed", sys.stderr)

    def count_finished(self, images: int) -> None:
        """Count images of cells that were recorded or failed."""
        self.finished += images

    def end(self) -> None:
        """End a stream: the bar goes back over images that must be run again."""
        self._show(self.finished)

    def _show(self, images: int) -> None:
        self.bar.update(images - self.shown)
        self.shown = images

    def finish(self, cell: Cell, evaluation: Evaluation) -> None:
        self._write(line_of(cell, evaluation.predictions, evaluation.seconds))

    def fail(self, cell: Cell, why: str) -> None:
        self._write(f"{line_of(cell)}  FAILED: {why}")

    def _write(self, line: str, file: TextIO | None = None) -> None:
        file = file or sys.stdout
        self.bar.write(line, file=file)
        file.flush()


def line_of(cell: Cell, predictions: Predictions | None = None, seconds: float = 0.0) -> str:
    """A line for a cell, with its results if there are any."""
    line = f"{cell.row.text:<16} {str(cell.domain):<20} seed {cell.seed:<4}"
    if predictions is None:
        return line
    correct, teacher = predictions.correct(), predictions.teacher_correct()
    line += f"  error {1 - correct.mean():6.1%}"
    if teacher is not None:
        line += f"  teacher {1 - teacher.mean():6.1%}"
    return f"{line}  {1000 * seconds / len(correct):8.2f} ms/image"
