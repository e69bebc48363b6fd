"""Build: make the tables of a results folder from its cells. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from tta_apm.bench.records import hash_bytes
from tta_apm.errors import choose
from tta_apm.metrics import METRICS
from tta_apm.report import phrases
from tta_apm.report.protocol import DomainKey
from tta_apm.report.results import Rows, TableRow
from tta_apm.report.statistics import paired_interval, per_image
from tta_apm.report.table import (
    Columns, Cost, Figure, Origin, Table, TableLine, domains_of, empty_tables)


def build_tables(rows: Rows, *, metric: str = "error") -> list[Table]:
    """The tables of all data sets: one per severity, then their mean if there are several.

    Args:
        rows: see load_rows. A row that lacks a wanted domain or seed gets no mean.
        metric: "error" or "accuracy".
    """
    choose("METRIC", "metric", metric, METRICS)
    return [replace(table, notes=(*table.notes, *rows.notes(dataset)))
            for dataset in sorted({row.protocol.dataset for row in rows})
            for empty in empty_tables(dataset, rows.domains(dataset), metric)
            for table in [_filled(empty, rows.of(dataset))]]


def _filled(table: Table, rows: Sequence[TableRow]) -> Table:
    lines = tuple(_line(number, row, table, summary)
                  for number, (row, summary) in enumerate(zip(rows, _summaries(rows)), 1))
    table = replace(table, lines=lines)
    return replace(table, best=frozenset(_best(table)), notes=(
        *map(phrases.offline, filter(lambda line: line.is_offline, table.lines)),
        *_missing_notes(table, rows), *_mixture_notes(table, rows), *_image_notes(table)))


def _line(number: int, row: TableRow, table: Table, summary: str) -> TableLine:
    protocol = row.protocol
    heading = f"{protocol.row} {phrases.OFFLINE}" if protocol.scope == "domain" else protocol.row
    return TableLine(
        number, heading, protocol, summary, tuple(row.seeds),
        {name: _figure(row, columns, table.metric) for name, columns in table.figures.items()},
        num_missing=len(row.missing(table.domains)), cost=_cost(row, domains_of(table.columns)),
        origin=_origin(row, domains_of(table.columns)), row=row)


def _figure(row: TableRow, columns: Columns, metric: str) -> Figure:
    """The mean over columns, its std over seeds, and the comparison with the teacher."""
    domains = domains_of(columns)
    if row.missing(domains):
        return Figure()
    results = row.within(domains)
    # Columns have equal weights, and so have the severities within a column.
    weights = np.concatenate([np.full(len(column), 1 / len(columns) / len(column))
                              for column in columns.values()])
    per_seed = np.array([_score(result.correct, metric) for result in results])
    per_seed = per_seed.reshape(-1, len(weights)) @ weights
    shares = np.tile(weights, len(per_seed)) / len(per_seed)
    figure = Figure(
        value=float(per_seed.mean()),
        std=float(per_seed.std(ddof=1)) if len(per_seed) > 1 else math.nan,
        agreement=_mean([result.agreement for result in results]),
        cosine=_mean([result.cosine for result in results]))
    teacher = [result.teacher_correct for result in results if result.teacher_correct is not None]
    if len(teacher) < len(results):
        return figure
    gains = [result.correct.astype(np.int8) - right for result, right in zip(results, teacher)]
    images = [result.index for result in results]
    gain = per_image(images, gains, shares.tolist())
    heaviest = per_image(images, [np.ones(len(index)) for index in images], shares.tolist())
    sign = 1 if metric == "accuracy" else -1
    low, high = sorted(sign * end for end in paired_interval(gain, extreme=heaviest.max()))
    return replace(figure, teacher=float(shares @ [_score(right, metric) for right in teacher]),
                   delta=sign * float(gain.mean()), low=low, high=high)


def _score(correct: np.ndarray, metric: str) -> float:
    return float(np.mean(correct if metric == "accuracy" else ~correct))


def _mean(values: Sequence[float | None]) -> float:
    """The mean of values; NaN if one is None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else math.nan


def _cost(row: TableRow, domains: Sequence[DomainKey]) -> Cost:
    if row.missing(domains):
        return Cost()
    records = [result.record for result in row.within(domains)]
    num_images = sum(record.num_images for record in records)

    def did(name: str) -> float:
        return sum(record.did.get(name, math.nan) for record in records)

    # Seconds that were measured beside other processes are used only if there are no others.
    timed = [record for record in records if not record.crowded] or records
    return Cost(
        sum(record.seconds for record in timed) / sum(record.num_images for record in timed),
        _mean([record.gflops_per_image for record in records]),
        max(record.peak_memory_mb for record in records),
        did("updated") / num_images, did("forwards") / num_images,
        did("backwards") / num_images, did("resets") / len(records),
        crowded=timed[0].crowded)


def _origin(row: TableRow, domains: Sequence[DomainKey]) -> Origin:
    records = [result.record for result in row.within(domains)]
    fingerprints = sorted(record.fingerprint for record in records)
    return Origin(
        device=_distinct(record.device for record in records),
        images_from=_distinct(record.images_from for record in records),
        code=_distinct(record.code for record in records),
        commit=_distinct(record.commit for record in records),
        fingerprint=hash_bytes(" ".join(fingerprints).encode()))


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(texts)))


def _summaries(rows: Sequence[TableRow]) -> list[str]:
    """The protocol of each row in short, with its hyper-parameters last."""
    protocols = [row.protocol for row in rows]
    texts = []
    for row, protocol in zip(rows, protocols):
        parts = [protocol.scope, f"survives: {protocol.survives}", protocol.setting,
                 protocol.order, f"n={protocol.num_images}", f"b{protocol.batch_size}",
                 phrases.seeds(row.seeds)]
        same_backbone = [other for other in protocols if other.backbone == protocol.backbone]
        parts += [f"{name} {getattr(protocol, name)}"
                  for name in ("weights", "templates", "resolution", "preprocessing")
                  if len({getattr(other, name) for other in same_backbone}) > 1]
        texts.append(" · ".join([*parts, *phrases.settings(protocol.hyper_parameters or {})]))
    return texts


def _best(table: Table) -> Iterable[tuple[int, str]]:
    """The (line number, column) of the best values as printed, among online rows on the same
    images."""
    best_of = max if table.metric == "accuracy" else min
    for name, columns in table.figures.items():
        for all_lines in _by_images(table, name, columns):
            lines = [line for line in all_lines if not line.is_offline]
            printed = [f"{100 * line.figures[name].value:.1f}" for line in lines]
            if len(lines) > 1:  # a single line is not marked
                best = best_of(printed, key=float)
                yield from ((line.number, name) for line, text in zip(lines, printed)
                            if text == best)


def _by_images(table: Table, name: str, columns: Columns) -> list[list[TableLine]]:
    """The lines that have the figure `name`, grouped by their images."""
    groups: dict[frozenset[tuple[DomainKey, str]], list[TableLine]] = {}
    for line in table.lines:
        if line.row is not None and not math.isnan(line.figures[name].value):
            groups.setdefault(line.row.images(domains_of(columns)), []).append(line)
    return list(groups.values())


def _missing_notes(table: Table, rows: Sequence[TableRow]) -> Iterable[str]:
    for line, row in zip(table.lines, rows):
        if line.num_missing:
            absent = "".join(f" Seed {seed} has no cell yet." for seed in row.absent_seeds)
            yield phrases.missing(line, table) + absent


def _mixture_notes(table: Table, rows: Sequence[TableRow]) -> Iterable[str]:
    for number, row in enumerate(rows, 1):
        records = [result.record for result in row.within(table.domains)]
        if records and not records[0].identity:
            yield (f"Row {number}: recorded by version 0.1.0, which kept no hashes of weights and "
                   "images.")
        codes = _distinct(record.code for record in records)
        if len(codes) > 1:
            yield f"Row {number}: its cells come from different code ({', '.join(codes)})."
        devices = _distinct(record.device for record in records)
        if len(devices) > 1:
            yield (f"Row {number}: its cells come from different devices ({', '.join(devices)}), "
                   "so its time is a mixture.")


def _image_notes(table: Table) -> Iterable[str]:
    columns: dict[str, list[str]] = {}
    for name, of_figure in table.figures.items():
        groups = _by_images(table, name, of_figure)
        if len(groups) > 1 and name != "mean":  # that of the mean follows from the others
            text = " | ".join(", ".join(str(line.number) for line in lines) for lines in groups)
            columns.setdefault(text, []).append(name)
    for text, names in columns.items():
        where = "" if len(names) == len(table.figures) - 1 else f" in {', '.join(names)}"
        yield (f"Rows are not on the same images{where}: {text} (| separates the groups). The best "
               "is marked only among rows on the same images.")
