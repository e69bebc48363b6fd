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
            "preprocessing", "dataset", "num_images", "scope", "survives", "setting", "order",
            "batch_size")

# A domain within its data set: corruption and severity.
DomainKey = tuple[str, int]


@dataclass(frozen=True)
class Result:
    """One cell: its record, with what a table needs of its predictions.

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
class TableRow:
    """The results of one method under one protocol, by domain and seed."""

    results: dict[tuple[DomainKey, int], Result]

    @property
    def protocol(self) -> Record:
        """A record of the row, to read the fields of PROTOCOL from."""
        return next(iter(self.results.values())).record

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.results})

    def missing(self, domains: Sequence[DomainKey]) -> list[DomainKey]:
        """The domains that lack a seed of the row, once per seed."""
        return [domain for domain in domains for seed in self.seeds
                if (domain, seed) not in self.results]

    def within(self, domains: Sequence[DomainKey]) -> list[Result]:
        """The results of these domains that are there, seed by seed."""
        return [self.results[domain, seed] for seed in self.seeds for domain in domains
                if (domain, seed) in self.results]

    def images(self, domains: Sequence[DomainKey]) -> frozenset[tuple[DomainKey, str]]:
        """What identifies the images of these domains: rows are compared where it is equal."""
        return frozenset((domain_key(result.record), result.record.images_hash)
                         for result in self.within(domains))


def domain_key(record: Record) -> DomainKey:
    return record.corruption, record.severity


def saved_config(folder: Path) -> dict[str, Any]:
    """The config that the last run left in a results folder, {} if it is not there or not ours."""
    import yaml

    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def load_results(folder: Path) -> list[Result]:
    """Read all cells below `folder`/cells.

    Raises:
        UserError: if there is none, or a file is truncated, foreign or at odds with its record.
    """
    paths = list(find_records(folder / CELLS)) if (folder / CELLS).is_dir() else []
    if not paths:
        raise UserError(f"{folder} holds no results (no records below {folder / CELLS}): "
                        "give the OUTPUT_DIR of a run, or wait for its first cell")
    shared: dict[bytes, np.ndarray] = {}
    return [_load_result(path, shared) for path in paths]


def _load_result(path: Path, shared: dict[bytes, np.ndarray]) -> Result:
    """Read one cell. Cells on the same images share one index array, kept in `shared`."""
    record = load_record(path)
    predictions = load_predictions(path, record)
    index = np.sort(predictions.index)
    correct = predictions.correct()
    if (len(correct), int(correct.sum())) != (record.num_images, record.num_correct):
        raise UserError(f"{path} says that {record.num_correct} of {record.num_images} images are "
                        f"right, its predictions say {correct.sum()} of {len(correct)}: delete or "
                        "move it, then run again; only that cell is run anew")
    teacher = predictions.teacher_prediction
    cosine = predictions.cosine
    return Result(
        path, record, index=shared.setdefault(index.tobytes(), index), correct=correct,
        teacher_correct=predictions.teacher_correct(),
        agreement=None if teacher is None else agreement(predictions.prediction, teacher),
        cosine=None if cosine is None else float(np.mean(cosine, dtype=np.float64)))


def group_rows(results: Sequence[Result], methods: Sequence[str] = ()) -> list[TableRow]:
    """The rows of a table.

    Args:
        methods: the texts of rows that come first, in this order; the others follow, ordered by
            backbone and text.

    Raises:
        UserError: if two files hold the same cell.
    """
    groups: dict[str, dict[tuple[DomainKey, int], Result]] = {}
    for result in results:
        group = groups.setdefault(_key(result.record), {})
        place = (domain_key(result.record), result.record.seed)
        if place in group:
            raise UserError(f"{group[place].path} and {result.path} hold the same cell "
                            "(they differ in nothing that a row shows): move one of them away")
        group[place] = result
    rank = {text: place for place, text in enumerate(methods)}
    return sorted((TableRow(group) for group in groups.values()),
                  key=lambda row: (rank.get(row.protocol.row, len(rank)), _place(row.protocol)))


def _key(record: Record) -> str:
    # Records of version 0.1.0 do not tell what they were made of: they share no mean with others.
    return json.dumps([bool(record.identity), *(getattr(record, name) for name in PROTOCOL)],
                      sort_keys=True)


def _place(protocol: Record) -> list[Any]:
    return [protocol.backbone, _natural(protocol.row), _key(protocol)]


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key that has "STEPS 5" before "STEPS 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part)
            for part in re.split(r"(\d+)", text)]
