"""Progress: what a sweep shows while it runs."""

from __future__ import annotations

import sys

from tta_apm.bench.evaluate import Evaluation
from tta_apm.bench.plan import Cell
from tta_apm.progress import bar


class Progress:
    """A bar over the images of a sweep, with one line for each finished cell."""

    def __init__(self, total: int) -> None:
        self.bar = bar(total, "img")
        self.seen = self.correct = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def start(self, cell: Cell, num_domains: int) -> None:
        """A stream begins, at `cell`."""
        self.seen = self.correct = 0
        place = str(cell.domain) if num_domains == 1 else f"{num_domains} domains"
        self.bar.set_description(f"{cell.row.text} {place}")

    def update(self, images: int, correct: int) -> None:
        self.seen += images
        self.correct += correct
        self.bar.set_postfix_str(f"error {1 - self.correct / self.seen:.1%}", refresh=False)
        self.bar.update(images)

    def skip(self, images: int) -> None:
        """Of `images`, the stream's own among them, no more will come."""
        self.bar.update(images - self.seen)

    def finish(self, cell: Cell, evaluation: Evaluation) -> None:
        correct = evaluation.predictions.correct()
        line = f"{_label(cell)}  error {1 - correct.mean():6.1%}"
        teacher = evaluation.predictions.teacher_correct()
        if teacher is not None:
            line += f"  teacher {1 - teacher.mean():6.1%}"
        self._write(f"{line}  {1000 * evaluation.seconds / len(correct):8.2f} ms/image")

    def fail(self, cell: Cell, why: str) -> None:
        self._write(f"{_label(cell)}  FAILED: {why}")

    def _write(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def _label(cell: Cell) -> str:
    return f"{cell.row.text:<16} {str(cell.domain):<20} seed {cell.seed:<4}"
