"""Block: the numbers of one table, from the cells. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from tta_apm.bench.records import hash_bytes
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.errors import UserError, nearest
from tta_apm.metrics import METRICS
from tta_apm.report.results import DomainKey, Rows, TableRow
from tta_apm.report.statistics import paired_interval, per_image

CLEAN_KEY: DomainKey = ("clean", 0)
LIKENESS = ("agreement", "cosine")
COST = ("seconds_per_image", "gflops_per_image", "peak_memory_mb")
# Each column's domains: one, or the same corruption at several severities.
Layout = dict[str, tuple[DomainKey, ...]]


@dataclass(frozen=True)
class Block:
    """One table: a data set at one severity, or the mean over its severities.

    Args:
        dataset: its name.
        severity: "5", "mean of 1 2 3 4 5", or "0" where all images are clean.
        metric: "error" or "accuracy".
        columns: names of the columns that the mean is over, in the usual order.
        clean: whether there is a column "clean" beside them, which the mean leaves out.
        frame: one line per row, fractions. NaN is a cell that is missing, or an average that
            would be over one. Beside `columns`, "mean" and "clean" it has, of each of these,
            std_*, teacher_*, delta_*, delta_low_*, delta_high_*, agreement_*, cosine_*; the last
            two also by themselves, those of the mean; then the protocol and the cost.
        best: (line, column) of the best values, compared as printed and on the same images only.
        notes: what a reader must know beside the numbers; rows are counted from 1.
    """

    dataset: str
    severity: str
    metric: str
    columns: tuple[str, ...]
    clean: bool
    frame: pd.DataFrame
    best: frozenset[tuple[int, str]]
    notes: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns of figures: clean if there is one, the corruptions, mean."""
        if self.columns == ("clean",):
            return self.columns
        return ("clean",) * self.clean + self.columns + ("mean",)


def make_blocks(rows: Rows, *, metric: str = "error") -> list[Block]:
    """The tables of all data sets: each severity, then the mean over severities if several.

    Args:
        rows: see load_rows; a row is whole if it has the domains and seeds that they want.
        metric: "error" or "accuracy".
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}: {nearest(metric, METRICS)}")
    blocks = []
    for dataset in sorted({row.protocol.dataset for row in rows}):
        domains = rows.domains(dataset)
        blocks += [replace(block, notes=(*block.notes, *rows.notes(dataset)))
                   for severity, layout in layouts(domains)
                   for block in [_block(rows.of(dataset), dataset, severity, layout,
                                        CLEAN_KEY in domains, metric)]]
    return blocks


def in_usual_order(names: Iterable[str]) -> list[str]:
    """Corruptions as the field orders them, others after them by alphabet."""
    return sorted(set(names), key=lambda name: (
        CORRUPTIONS.index(name) if name in CORRUPTIONS else len(CORRUPTIONS), name))


def layouts(domains: set[DomainKey]) -> list[tuple[str, Layout]]:
    """The tables of a data set: the severity of each, and its columns."""
    severities = sorted({severity for _, severity in domains} - {0})
    if not severities:
        return [("0", {"clean": (CLEAN_KEY,)})]
    names = in_usual_order(name for name, severity in domains if severity)
    layouts: list[tuple[str, Layout]] = [(str(severity), {
        name: ((name, severity),) for name in names if (name, severity) in domains
    }) for severity in severities]
    if len(severities) > 1:
        layouts.append((f"mean of {' '.join(map(str, severities))}", {
            name: tuple((name, severity) for severity in severities if (name, severity) in domains)
            for name in names}))
    return layouts


def _block(rows: Sequence[TableRow], dataset: str, severity: str, layout: Layout, clean: bool,
           metric: str) -> Block:
    clean = clean and severity != "0"
    # Every figure of the table as the columns that it is the mean of.
    figures: dict[str, Layout] = {"clean": {"clean": (CLEAN_KEY,)}} if clean else {}
    figures |= {name: {name: domains} for name, domains in layout.items()} | {"mean": layout}
    lines = [_line(row, severity, figures, metric) for row in rows]
    for line, text in zip(lines, _protocols(rows)):
        line["protocol"] = text
    frame = pd.DataFrame(lines)
    return Block(dataset, severity, metric, tuple(layout), clean, frame,
                 frozenset(_best(rows, figures, frame, metric)),
                 (*_missing_notes(rows, figures), *_mixture_notes(rows, figures),
                  *_image_notes(rows, figures, frame)))


def _line(row: TableRow, severity: str, figures: Mapping[str, Layout],
          metric: str) -> dict[str, Any]:
    """One line of a block's frame."""
    line: dict[str, Any] = {"method": row.protocol.row, "metric": metric, "severity": severity,
                            "seeds": " ".join(map(str, row.seeds))}
    line |= {name: getattr(row.protocol, name) for name in (
        "dataset", "num_images", "setting", "order", "batch_size", "scope", "survives",
        "backbone", "weights", "templates", "resolution", "preprocessing")}
    line["hyper_parameters"] = json.dumps(row.protocol.hyper_parameters, sort_keys=True)
    for name, layout in figures.items():
        line |= _figure(row, name, layout, metric) | _teacher_likeness(row, name, layout)
    line |= {name: line[f"{name}_mean"] for name in LIKENESS}
    line |= _cost(row, _domains(figures["mean"]))
    line["num_missing"] = len(row.missing(_shown_domains(figures)))
    return line


def _domains(layout: Layout) -> list[DomainKey]:
    return [domain for domains in layout.values() for domain in domains]


def _shown_domains(figures: Mapping[str, Layout]) -> list[DomainKey]:
    """The domains of all columns, each once: the mean has none of its own."""
    return [domain for name, layout in figures.items() if name != "mean"
            for domain in _domains(layout)]


def _figure(row: TableRow, name: str, layout: Layout, metric: str) -> dict[str, float]:
    """The mean over a layout's columns, its std over seeds, and how it stands to the teacher's."""
    figure = dict.fromkeys((name, f"std_{name}", f"teacher_{name}", f"delta_{name}",
                            f"delta_low_{name}", f"delta_high_{name}"), math.nan)
    domains = _domains(layout)
    if row.missing(domains):
        return figure
    results = row.within(domains)
    # Every column weighs the same, and so does every severity within a column.
    weights = np.concatenate([np.full(len(column), 1 / len(layout) / len(column))
                              for column in layout.values()])
    per_seed = np.array([_score(result.correct, metric) for result in results])
    per_seed = per_seed.reshape(-1, len(weights)) @ weights
    figure[name] = float(per_seed.mean())
    if len(per_seed) > 1:
        figure[f"std_{name}"] = float(per_seed.std(ddof=1))
    teacher = [result.teacher_correct for result in results if result.teacher_correct is not None]
    if len(teacher) == len(results):
        shares = np.tile(weights, len(per_seed)) / len(per_seed)
        figure[f"teacher_{name}"] = float(shares @ [_score(right, metric) for right in teacher])
        gains = [result.correct.astype(np.int8) - right for result, right in zip(results, teacher)]
        images = [result.index for result in results]
        gain = per_image(images, gains, shares.tolist())
        heaviest = per_image(images, [np.ones(len(index)) for index in images], shares.tolist())
        sign = 1 if metric == "accuracy" else -1
        low, high = sorted(sign * end for end in paired_interval(gain, extreme=heaviest.max()))
        figure |= {f"delta_{name}": sign * float(gain.mean()), f"delta_low_{name}": low,
                   f"delta_high_{name}": high}
    return figure


def _score(correct: np.ndarray, metric: str) -> float:
    return float(np.mean(correct if metric == "accuracy" else ~correct))


def _teacher_likeness(row: TableRow, name: str, layout: Layout) -> dict[str, float]:
    """Agreement with the teacher and final cosine over a layout's domains, if all are there."""
    results = row.within(_domains(layout))
    whole = not row.missing(_domains(layout))
    return {f"{kind}_{name}": float(np.mean([getattr(result, kind) for result in results]))
            if whole and all(getattr(result, kind) is not None for result in results) else math.nan
            for kind in LIKENESS}


def _cost(row: TableRow, domains: Sequence[DomainKey]) -> dict[str, Any]:
    """Cost over all cells (peak memory: the highest), and where those that are there come from."""
    records = [result.record for result in row.within(domains)]
    line: dict[str, Any] = dict.fromkeys(COST, math.nan)
    if not row.missing(domains):
        images = sum(record.num_images for record in records)
        line["seconds_per_image"] = sum(record.seconds for record in records) / images
        counted = [record.gflops_per_image for record in records
                   if record.gflops_per_image is not None]
        if len(counted) == len(records):
            line["gflops_per_image"] = float(np.mean(counted))
        line["peak_memory_mb"] = max(record.peak_memory_mb for record in records)
    line |= {name: "; ".join(sorted({getattr(record, name) for record in records}))
             for name in ("device", "images_from", "code", "commit")}
    fingerprints = sorted(record.fingerprint for record in records)
    line["fingerprint"] = hash_bytes(" ".join(fingerprints).encode())  # of the row, from its cells
    return line


def _protocols(rows: Sequence[TableRow]) -> list[str]:
    """Each row's protocol in short, its hyper-parameters last."""
    records = [row.protocol for row in rows]
    texts = []
    for row, record in zip(rows, records):
        seeds = f"seed{'s' * (len(row.seeds) > 1)} {' '.join(map(str, row.seeds))}"
        parts = [record.scope, f"survives: {record.survives}", record.setting, record.order,
                 f"n={record.num_images}", f"b{record.batch_size}", seeds]
        same_backbone = [other for other in records if other.backbone == record.backbone]
        parts += [f"{name} {getattr(record, name)}"
                  for name in ("weights", "templates", "resolution", "preprocessing")
                  if len({getattr(other, name) for other in same_backbone}) > 1]
        parts += [f"{name} {value}" for name, value in record.hyper_parameters.items()
                  if value is not None]
        texts.append(" · ".join(parts))
    return texts


def _best(rows: Sequence[TableRow], figures: Mapping[str, Layout], frame: pd.DataFrame,
          metric: str) -> Iterable[tuple[int, str]]:
    best_of = max if metric == "accuracy" else min
    for name, layout in figures.items():
        for lines in _by_images(rows, layout, frame[name]):
            printed = [f"{100 * frame[name][line]:.1f}" for line in lines]
            if len(lines) > 1:  # there is no best of one
                best = best_of(printed, key=float)
                yield from ((line, name) for line, text in zip(lines, printed) if text == best)


def _by_images(rows: Sequence[TableRow], layout: Layout, values: pd.Series) -> list[list[int]]:
    """The lines that have a value, those on the same images together."""
    groups: dict[Any, list[int]] = {}
    for line, row in enumerate(rows):
        if not math.isnan(values[line]):
            groups.setdefault(row.images(_domains(layout)), []).append(line)
    return list(groups.values())


def _missing_notes(rows: Sequence[TableRow], figures: Mapping[str, Layout]) -> Iterable[str]:
    for number, row in enumerate(rows, 1):
        domains = _shown_domains(figures)
        missing = len(row.missing(domains))
        if missing:
            absent = "".join(f" Seed {seed} has none yet." for seed in row.absent_seeds)
            yield (f"Row {number}: {missing} of {len(domains) * len(row.seeds)} cells missing; no "
                   f"average is taken over them.{absent}")


def _mixture_notes(rows: Sequence[TableRow], figures: Mapping[str, Layout]) -> Iterable[str]:
    for number, row in enumerate(rows, 1):
        records = [result.record for result in row.within(_shown_domains(figures))]
        if records and not records[0].identity:
            yield (f"Row {number}: of the older kind: version 0.1.0 recorded it, which does not "
                   "tell by content what it was made of.")
        codes = sorted({record.code for record in records})
        if len(codes) > 1:
            yield f"Row {number}: its cells come from different code ({', '.join(codes)})."
        devices = sorted({record.device for record in records})
        if len(devices) > 1:
            yield (f"Row {number}: its cells come from different devices ({', '.join(devices)}), "
                   "so its time is a mixture.")


def _image_notes(rows: Sequence[TableRow], figures: Mapping[str, Layout],
                 frame: pd.DataFrame) -> Iterable[str]:
    columns: dict[str, list[str]] = {}
    for name, layout in figures.items():
        groups = _by_images(rows, layout, frame[name])
        if len(groups) > 1 and name != "mean":  # it follows from the others
            text = " | ".join(", ".join(str(line + 1) for line in lines) for lines in groups)
            columns.setdefault(text, []).append(name)
    for text, names in columns.items():
        where = "" if len(names) == len(figures) - 1 else f" in {', '.join(names)}"
        yield (f"Rows are not on the same images{where}: {text} (the bar parts them). The best is "
               "marked only among rows on the same images.")
