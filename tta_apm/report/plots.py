"""Plots: pictures of a results folder, written beside its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tta_apm.errors import UserError
from tta_apm.report import drawings
from tta_apm.report.results import load_rows, saved_config
from tta_apm.report.style import save
from tta_apm.report.table import Block, make_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each kind needs, for who asks for one that cannot be drawn.
KINDS: dict[str, tuple[Callable[[Block], list[Figure]], str]] = {
    "methods": (drawings.methods, "any results"),
    "teacher": (drawings.teacher, "a method with a teacher"),
    "steps": (drawings.steps, "a method with a teacher and two numbers of steps, say METHODS "
              "[apm STEPS 5, apm STEPS 20]"),
    "audit": (drawings.audit, "the results of the configs in cfgs/audit"),
}


def draw(folder: Path, *, kind: str | None = None, out: Path | None = None,
         metric: str | None = None) -> list[Path]:
    """Draw the results in `folder`; of several severities their mean.

    Args:
        folder: of the results, with the records below cells/.
        kind: of KINDS; None draws all that can be.
        out: the file of the one picture of `kind`; None writes <kind>.png to `folder`.
        metric: "error" or "accuracy"; None takes the run's.

    Returns:
        The files written.

    Raises:
        UserError: if there are no results, a file of them is not whole, or `kind` has nothing to
            draw.
    """
    blocks = make_blocks(load_rows(folder),
                         metric=metric or saved_config(folder).get("METRIC", "error"))
    last = {block.dataset: block for block in blocks}
    pictures: list[tuple[str, Figure]] = []
    for name in [kind] if kind else KINDS:
        figures = [made for block in last.values() for made in KINDS[name][0](block)]
        pictures += [(f"{name}{f'-{place}' * (place > 1)}.png", made)
                     for place, made in enumerate(figures, 1)]
    if not pictures:
        raise UserError(f"{folder}: a picture of kind {kind} needs {KINDS[kind or ''][1]}")
    if out and len(pictures) > 1:
        raise UserError(f"{folder} gives {len(pictures)} pictures of kind {kind}, --out takes one: "
                        "leave it out to have them all in that folder")
    return [save(made, out or folder / name) for name, made in pictures]
