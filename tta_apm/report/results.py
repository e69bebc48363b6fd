"""Results: read the cells of a folder and group them into rows. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tta_apm.bench.records import Record, find_records, load_predictions, load_record
from tta_apm.errors import UserError
from tta_apm.names import clean_all
from tta_apm.report.protocol import DomainKey, Protocol, domain_key
from tta_apm.report.statistics import agreement
from tta_apm.report.wanted import Wanted, wanted

CELLS = "cells"


@dataclass(frozen=True)
class Result:
    """One cell: its record, and what a table needs of its predictions.

    Args:
        path: the file of the record.
        index: positions of the images in the data set, ascending, int64 [N].
        correct: whether each prediction is right, bool [N].
        teacher_correct: the same for the teacher's predictions, None without a teacher.
        agreement: share of images on which method and teacher agree, None without a teacher.
        cosine: mean final cosine of student and teacher, None if the method has none.
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
    """The results of one method under one protocol.

    Args:
        results: the recorded cells, by domain and seed.
        wanted_seeds: seeds that the row must have beside those of its results.
    """

    results: dict[tuple[DomainKey, int], Result]
    wanted_seeds: tuple[int, ...]

    @property
    def protocol(self) -> Protocol:
        """The protocol, which is the same for all its cells."""
        return Protocol.of(next(iter(self.results.values())).record)

    @property
    def seeds(self) -> list[int]:
        """The wanted seeds and those of any result, sorted."""
        return sorted({seed for _, seed in self.results}.union(self.wanted_seeds))

    @property
    def absent_seeds(self) -> list[int]:
        """The wanted seeds without any result."""
        return sorted(set(self.wanted_seeds).difference(seed for _, seed in self.results))

    @property
    def domains(self) -> set[DomainKey]:
        return {domain for domain, _ in self.results}

    def missing(self, domains: Sequence[DomainKey]) -> list[DomainKey]:
        """The domain of each missing cell, over `domains` and the row's seeds."""
        return [domain for domain in domains for seed in self.seeds
                if (domain, seed) not in self.results]

    def within(self, domains: Sequence[DomainKey]) -> list[Result]:
        """The results on these domains that exist, seed by seed."""
        return [self.results[domain, seed] for seed in self.seeds for domain in domains
                if (domain, seed) in self.results]

    def images(self, domains: Sequence[DomainKey]) -> frozenset[tuple[DomainKey, str]]:
        """A key of the images of these domains; rows with equal keys are on the same images."""
        return frozenset((domain_key(result.record), result.record.images_hash)
                         for result in self.within(domains))


@dataclass(frozen=True)
class Rows:
    """The rows of a folder, and the cells that were wanted. Tables and plots are made from it."""

    rows: tuple[TableRow, ...]
    wanted: Wanted

    def __iter__(self) -> Iterator[TableRow]:
        return iter(self.rows)

    def of(self, dataset: str) -> list[TableRow]:
        return [row for row in self.rows if row.protocol.dataset == dataset]

    def domains(self, dataset: str) -> set[DomainKey]:
        """The domains that a row on `dataset` must have: those of the run and of any row."""
        found = {domain for row in self.of(dataset) for domain in row.domains}
        return found.union(self.wanted.domains if dataset == self.wanted.dataset else ())

    def notes(self, dataset: str) -> list[str]:
        """Notes below the tables on `dataset`: when a row is complete, which rows are missing."""
        if self.wanted.unknown_because:
            return [self.wanted.unknown_because]
        if dataset != self.wanted.dataset:
            return [f"The folder's config.yaml is for {self.wanted.dataset}: a row on {dataset} "
                    "counts as complete if it has every domain that any row has."
                    ] if self.wanted.dataset else []
        missing = self.wanted.missing_rows(row.protocol for row in self.rows)
        return [f"The run's METHODS without any cell yet: {', '.join(missing)}."] if missing else []


def load_rows(folder: Path) -> Rows:
    """The rows of a results folder, and the cells that were wanted. UserError as load_results."""
    return group_rows(load_results(folder), wanted(folder))


def load_results(folder: Path) -> list[Result]:
    """Read all cells below `folder`/cells.

    Raises:
        UserError: if there is none, or a file is incomplete, not a record, or contradicts its
            record.
    """
    paths = list(find_records(folder / CELLS)) if (folder / CELLS).is_dir() else []
    if not paths:
        raise UserError(f"{folder} holds no results (no records below {folder / CELLS}): "
                        "give the OUTPUT_DIR of a run, or wait for its first cell")
    shared: dict[bytes, np.ndarray] = {}
    return [_load_result(path, shared) for path in paths]


def _load_result(path: Path, shared: dict[bytes, np.ndarray]) -> Result:
    """Read one cell. Cells on the same images share one index array from `shared`, to save memory.
    """
    record = Record(**clean_all(vars(load_record(path))))
    predictions = load_predictions(path, record)
    index = np.sort(predictions.index)
    correct = predictions.correct()
    if (len(correct), int(correct.sum())) != (record.num_images, record.num_correct):
        raise UserError(f"{path} says that {record.num_correct} of {record.num_images} images are "
                        f"right, its predictions say {correct.sum()} of {len(correct)}: delete or "
                        "move it, then run again; only that cell is repeated")
    teacher = predictions.teacher_prediction
    cosine = predictions.cosine
    return Result(
        path, record, index=shared.setdefault(index.tobytes(), index), correct=correct,
        teacher_correct=predictions.teacher_correct(),
        agreement=None if teacher is None else agreement(predictions.prediction, teacher),
        cosine=None if cosine is None else float(np.mean(cosine, dtype=np.float64)))


def group_rows(results: Sequence[Result], wanted: Wanted) -> Rows:
    """Group cells into rows: those of the run in its order, then others by backbone and text.

    Raises:
        UserError: if two files hold the same cell.
    """
    groups: dict[str, dict[tuple[DomainKey, int], Result]] = {}
    for result in results:
        group = groups.setdefault(_group(result.record), {})
        cell = (domain_key(result.record), result.record.seed)
        if cell in group:
            raise UserError(f"{group[cell].path} and {result.path} hold the same cell "
                            "(they differ in nothing that a row shows): move one of them away")
        group[cell] = result
    rows = []
    for name, group in groups.items():
        protocol = Protocol.of(next(iter(group.values())).record)
        rank = (wanted.methods.index(protocol.row) if protocol.row in wanted.methods
                else len(wanted.methods))
        row = TableRow(group, wanted.seeds if wanted.is_of_run(protocol) else ())
        rows.append((rank, protocol.backbone, _natural(protocol.row), name, row))
    return Rows(tuple(row for *_, row in sorted(rows, key=lambda entry: entry[:-1])), wanted)


def _group(record: Record) -> str:
    # Records of version 0.1.0 have no identity: they are not averaged with later ones.
    return json.dumps([bool(record.identity), *vars(Protocol.of(record)).values()], sort_keys=True)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key for which "STEPS 5" comes before "STEPS 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part)
            for part in re.split(r"(\d+)", text)]
