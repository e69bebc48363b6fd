"""Results: the cells of a folder, and the rows that they form. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tta_apm.bench.records import Record, find_records, load_predictions, load_record
from tta_apm.bench.statistics import agreement
from tta_apm.errors import UserError

CELLS = "cells"
# What a row is made of: two cells that differ in one of these never share a mean.
PROTOCOL = ("row", "method", "hyper_parameters", "backbone", "weights", "templates", "resolution",
            "dataset", "num_images", "scope", "setting", "order", "batch_size")

Domain = tuple[str, int]  # corruption and severity; ("clean", 0) for the clean images


@dataclass(frozen=True)
class Cell:
    """A record with what a table needs of its predictions.

    Args:
        index: positions in the data set, ascending, int64 [N].
        correct: whether the prediction is right, bool [N].
        teacher_correct: the same of the teacher's prediction, None without a teacher.
        agreement: share of images on which method and teacher agree, None without a teacher.
        cosine: mean final cosine of student and teacher, None where there is none.
    """

    path: Path
    record: Record
    index: np.ndarray
    correct: np.ndarray
    teacher_correct: np.ndarray | None
    agreement: float | None
    cosine: float | None


@dataclass(frozen=True)
class Row:
    """The cells of one method under one protocol, by domain and seed."""

    cells: dict[tuple[Domain, int], Cell]

    @property
    def protocol(self) -> Record:
        """A record of the row, to read the fields of PROTOCOL from."""
        return next(iter(self.cells.values())).record

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.cells})

    def missing(self, domains: Sequence[Domain]) -> list[Domain]:
        """The domains that lack a seed of the row, once per seed."""
        return [domain for domain in domains for seed in self.seeds
                if (domain, seed) not in self.cells]

    def within(self, domains: Sequence[Domain]) -> list[Cell]:
        """The cells of these domains that are there, seed by seed."""
        return [self.cells[domain, seed] for seed in self.seeds for domain in domains
                if (domain, seed) in self.cells]

    def images(self, domains: Sequence[Domain]) -> frozenset[tuple[Domain, str]]:
        """What identifies the images of these domains: rows are compared where it is equal."""
        return frozenset((domain_of(cell.record), cell.record.images_hash)
                         for cell in self.within(domains))


def domain_of(record: Record) -> Domain:
    return record.corruption, record.severity


def load_results(folder: Path) -> list[Cell]:
    """Read all cells below `folder`/cells.

    Raises:
        UserError: if there is none, or a file is truncated, foreign or at odds with its record.
    """
    paths = list(find_records(folder / CELLS)) if (folder / CELLS).is_dir() else []
    if not paths:
        raise UserError(f"{folder} holds no results (no records below {folder / CELLS}): "
                        "give the OUTPUT_DIR of a run, or wait for its first cell")
    shared: dict[bytes, np.ndarray] = {}
    return [_load_cell(path, shared) for path in paths]


def _load_cell(path: Path, shared: dict[bytes, np.ndarray]) -> Cell:
    """Read one cell. Cells on the same images share one index array, kept in `shared`."""
    record = load_record(path)
    predictions = load_predictions(path, record)
    index = np.sort(predictions.index)
    correct = predictions.correct()
    if (len(correct), int(correct.sum())) != (record.num_images, record.num_correct):
        raise UserError(f"{path} says {record.num_correct} of {record.num_images} images are right, "
                        f"its predictions say {correct.sum()} of {len(correct)}: delete or move "
                        "it, then run again; only that cell is run anew")
    teacher = predictions.teacher_prediction
    cosine = predictions.cosine
    return Cell(path, record, shared.setdefault(index.tobytes(), index), correct,
                predictions.teacher_correct(),
                None if teacher is None else agreement(predictions.prediction, teacher),
                None if cosine is None else float(np.mean(cosine, dtype=np.float64)))


def group_rows(cells: Sequence[Cell]) -> list[Row]:
    """The rows of a table, ordered by data set, backbone and method.

    Raises:
        UserError: if two files hold the same cell.
    """
    groups: dict[str, dict[tuple[Domain, int], Cell]] = {}
    for cell in cells:
        group = groups.setdefault(_key(cell.record), {})
        place = (domain_of(cell.record), cell.record.seed)
        if place in group:
            raise UserError(f"{group[place].path} and {cell.path} hold the same cell "
                            "(they differ in nothing that a row shows): move one of them away")
        group[place] = cell
    return sorted((Row(group) for group in groups.values()), key=_place)


def _key(record: Record) -> str:
    return json.dumps([getattr(record, name) for name in PROTOCOL], sort_keys=True)


def _place(row: Row) -> list[Any]:
    protocol = row.protocol
    return [protocol.dataset, protocol.backbone, _natural(protocol.row), _key(protocol)]


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key that has "STEPS 5" before "STEPS 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part)
            for part in re.split(r"(\d+)", text)]
