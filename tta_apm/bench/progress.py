"""Progress: what a sweep shows while it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tta_apm.bench.evaluate import Evaluation
from tta_apm.bench.plan import Cell
from tta_apm.config import Row
from tta_apm.data.dataset import Domain
from tta_apm.progress import bar


class Progress:
    """A bar over the images of a sweep, each counted once for each row; and one line for each
    finished cell."""

    def __init__(self, total: int) -> None:
        self.bar = bar(total, "img")
        self.settled = 0  # images of which all is known
        self.shown = 0  # of images
        self.seen = self.correct = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def start(self, rows: Sequence[Row], domains: Sequence[Domain]) -> None:
        """A stream of `domains` begins, for `rows`."""
        self.seen = self.correct = 0
        who = rows[0].text if len(rows) == 1 else f"{len(rows)} rows"
        where = str(domains[0]) if len(domains) == 1 else f"{len(domains)} domains"
        self.bar.set_description(f"{who} {where}")

    def update(self, images: int, correct: int) -> None:
        """A row has met so many images, of which it got so many right."""
        self.seen += images
        self.correct += correct
        self.bar.set_postfix_str(f"error {1 - self.correct / self.seen:.1%}", refresh=False)
        self._show(self.shown + images)

    def settle(self, images: int) -> None:
        """So many more images are done with: recorded or failed."""
        self.settled += images

    def end(self) -> None:
        """The stream is over: what was met of it in vain is taken back."""
        self._show(self.settled)

    def _show(self, images: int) -> None:
        self.bar.update(images - self.shown)
        self.shown = images

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
