"""Given: rows whose figures were measured elsewhere, beside ours. Imports no torch.

There are no predictions behind them: they get no interval and no teacher, are never marked best,
since nothing tells that they are on the same images, and say where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from tta_apm.report.results import DomainKey
from tta_apm.report.table import CLEAN_KEY, COST, Block, Layout, layouts


@dataclass(frozen=True)
class GivenRow:
    """Figures of one method under one protocol.

    Args:
        method: as the table shall name it.
        backbone: as its source names it, "" if that is silent.
        dataset: as ours are named.
        errors: error as a fraction, by domain and seed; the seed is None where none is told.
        protocol: what its source tells of how they were measured, in short.
        source: what a note below the table says of where they come from.
        mark: stands behind the method: "imported" or "published".
        place: stands there, too: whose method it is and where it ran.
        wanted: domains that it was to have besides those of `errors`.
        told: columns of a block's frame that its source tells, such as "setting".
    """

    method: str
    backbone: str
    dataset: str
    errors: Mapping[tuple[DomainKey, int | None], float]
    protocol: str
    source: str
    mark: str
    told: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    wanted: frozenset[DomainKey] = frozenset()

    @property
    def seeds(self) -> list[int | None]:
        return sorted({seed for _, seed in self.errors}, key=lambda seed: (seed is None, seed))

    @property
    def domains(self) -> set[DomainKey]:
        return {domain for domain, _ in self.errors} | self.wanted

    @property
    def heading(self) -> str:
        return f"{self.method} ({', '.join(filter(None, [self.mark, self.place]))})"

    def missing(self, domains: Iterable[DomainKey]) -> int:
        """How many cells of `domains` it lacks, over its seeds."""
        return sum((domain, seed) not in self.errors for domain in domains for seed in self.seeds)


def add_given(blocks: Sequence[Block], rows: Sequence[GivenRow], metric: str) -> list[Block]:
    """The blocks with given rows below ours, and blocks for what only they are on."""
    blocks = list(blocks)
    for dataset in sorted({row.dataset for row in rows}):
        there = [block for block in blocks if block.dataset == dataset]
        shown = {domain for block in there for domain in _shown(block)}
        homeless = [row for row in rows if row.dataset == dataset and not row.domains & shown]
        if homeless:  # a table of theirs, rather than none; ours stay the last ones
            place = blocks.index(there[0]) if there else len(blocks)
            blocks[place:place] = _empty_blocks(dataset, homeless, metric)
    return [with_rows(block, rows) for block in blocks]


def _empty_blocks(dataset: str, rows: Iterable[GivenRow], metric: str) -> list[Block]:
    domains = {domain for row in rows for domain in row.domains}
    return [Block(dataset, severity, metric, tuple(layout),
                  CLEAN_KEY in domains and severity != "0",
                  pd.DataFrame(), frozenset(), ()) for severity, layout in layouts(domains)]


def with_rows(block: Block, rows: Sequence[GivenRow]) -> Block:
    """A block with those of the given rows that have any of its domains below its own."""
    shown = _shown(block)
    fitting = [row for row in rows if row.dataset == block.dataset and row.domains & shown]
    if not fitting:
        return block
    lines = [_line(row, block, _figures(block)) for row in fitting]
    notes = []
    for number, row in enumerate(fitting, len(block.frame) + 1):
        notes.append(f"Row {number} is {row.mark}: {row.source}. There are no predictions behind "
                     "it, so it has no interval and is never marked best.")
        missing = row.missing(shown)
        if missing:
            notes.append(f"Row {number}: {missing} of {len(shown) * len(row.seeds)} cells missing; "
                         "no average is taken over them.")
    frame = pd.DataFrame([*block.frame.to_dict("records"), *lines])
    return replace(block, frame=frame, notes=(*block.notes, *notes))


def _shown(block: Block) -> set[DomainKey]:
    return {domain for layout in _figures(block).values() for column in layout.values()
            for domain in column}


def _figures(block: Block) -> dict[str, Layout]:
    """Every figure of a block as the columns that it is the mean of."""
    severities = [int(word) for word in block.severity.removeprefix("mean of ").split()]
    columns = {name: tuple((name, severity) for severity in severities)
               for name in block.columns}
    figures = {name: {name: domains} for name, domains in columns.items()}
    return figures | {"mean": columns} | ({"clean": {"clean": (CLEAN_KEY,)}} if block.clean else {})


def _line(row: GivenRow, block: Block, figures: Mapping[str, Layout]) -> dict[str, Any]:
    # What is not told stays empty: a NaN would turn our whole numbers into floats.
    line: dict[str, Any] = {
        **dict.fromkeys(map(str, block.frame.columns), ""),
        "method": row.heading, "metric": block.metric,
        "severity": block.severity, "dataset": row.dataset, "backbone": row.backbone,
        "weights": "not told", "templates": "", "resolution": 0, "preprocessing": "",
        "seeds": " ".join("?" if seed is None else str(seed) for seed in row.seeds),
        "protocol": row.protocol, "device": "", "images_from": "not told",
        "num_missing": row.missing(_shown(block)), **row.told}
    line |= dict.fromkeys((*COST, "agreement", "cosine"), math.nan)
    for name, layout in figures.items():
        line |= dict.fromkeys((f"{kind}_{name}" for kind in (
            "std", "teacher", "delta", "delta_low", "delta_high", "agreement", "cosine")),
            math.nan)
        line |= _figure(row, name, layout, block.metric)
    return line


def _figure(row: GivenRow, name: str, layout: Layout, metric: str) -> dict[str, float]:
    """The mean over a layout's columns and its std over seeds; NaN unless all of it is there."""
    per_seed = [np.mean([np.mean([row.errors.get((domain, seed), math.nan) for domain in column])
                         for column in layout.values()]) for seed in row.seeds]
    error = float(np.mean(per_seed))
    return {name: 1 - error if metric == "accuracy" else error,
            f"std_{name}": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else math.nan}
