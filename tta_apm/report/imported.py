"""Imported: results of other repositories as rows of a folder's tables. Imports no torch.

`tta-apm import LOG ... --into FOLDER` writes them to FOLDER/imported/*.json.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tta_apm.atomic import atomic_write
from tta_apm.bench.records import hash_bytes
from tta_apm.errors import UserError, explain
from tta_apm.report import phrases
from tta_apm.report.external import NOT_STATED, ExternalRow, protocol_of
from tta_apm.report.imported_log import FIELDS, Log, checked
from tta_apm.report.protocol import DomainKey

FOLDER = "imported"
# Fields that logs of version 0.1.0 lack, with their defaults.
LATER = {"settings": {}, "missing": [], "ours": False}
# A heading names so many of the settings in which rows of the same name differ.
MAX_DIFFERENCES = 3


def save(log: Log, folder: Path) -> Path:
    """Write a log to a results folder and return its path; the same log has the same path."""
    name = re.sub(r"[^A-Za-z0-9.]+", "_", f"{log.host}-{log.method}-{log.backbone}")[:100]
    content = json.dumps({"imported": True, **asdict(log)}, indent=1, sort_keys=True).encode()
    path = folder / FOLDER / f"{name}-{hash_bytes(content)}.json"
    atomic_write(path, content)
    return path


def load(folder: Path) -> list[Log]:
    """The imported logs of a results folder. UserError for a file that is not one."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            content = {**LATER, **json.loads(path.read_text(encoding="utf-8"))}
            content = {name: content[name] for name in FIELDS}
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is not an imported log or is corrupt ({explain(error)}): "
                            "delete it and import the log again") from error
        found.append(checked(content, str(path)))
    return found


def rows(found: Sequence[Log]) -> list[ExternalRow]:
    """The rows of logs: logs that differ only in their seed and domains form one row.

    Raises:
        UserError: if two logs hold the same cell.
    """
    groups: dict[str, list[Log]] = {}
    for log in sorted(found, key=lambda log: (log.host, log.method, log.file)):
        groups.setdefault(json.dumps(_settings(log), sort_keys=True), []).append(log)
    counts = Counter(_heading(group[0]) for group in groups.values())
    return [_row(group, [other[0] for other in groups.values()
                         if counts[_heading(group[0])] > 1
                         and _heading(other[0]) == _heading(group[0])])
            for group in groups.values()]


def _settings(log: Log) -> dict[str, Any]:
    """Everything in which two rows may differ."""
    return {"host": log.host, "ours": log.ours, "method": log.method, "backbone": log.backbone,
            "dataset": log.dataset, "setting": log.setting, "batch_size": log.batch_size,
            "images": " ".join(map(str, _counts(log))), **log.hyper_parameters, **log.settings}


def _heading(log: Log) -> tuple[str, str, str]:
    return log.dataset, log.method, _host(log)


def _host(log: Log) -> str:
    return f"ours in {log.host}" if log.ours else log.host


def _row(group: Sequence[Log], alike: Sequence[Log]) -> ExternalRow:
    """The row of a group of logs.

    Args:
        alike: one log of each row with the same heading, if there are several such rows.
    """
    first = group[0]
    differences = [f"{name} {_settings(first).get(name, NOT_STATED)}"
                   for name in _differences(alike)]
    parts = [first.setting, *(f"n={count}" for count in _counts(first))]
    if first.batch_size is not None:
        parts.append(f"b{first.batch_size}")
    seeds = sorted({NOT_STATED if log.seed is None else str(log.seed) for log in group})
    parts.append(phrases.seeds(seeds))
    parts += phrases.settings(first.hyper_parameters)
    parts += [text for text in differences if text not in parts]
    files = ", ".join(sorted({log.file for log in group}))
    shown = differences[:MAX_DIFFERENCES]
    if len(differences) > MAX_DIFFERENCES:
        shown.append("...")
    return ExternalRow(
        protocol_of(
            " ".join([first.method, *shown]), first.backbone, first.dataset,
            hyper_parameters=first.hyper_parameters,
            num_images=" ".join(map(str, _counts(first))), setting=first.setting,
            batch_size=first.batch_size),
        _errors(group), summary=" · ".join([first.host, *parts]),
        source=f"from {first.host}, {files}", mark="imported", host=_host(first),
        images_from=str(first.settings.get("images", NOT_STATED)), wanted=frozenset(
            (name, severity) for log in group for name, severity in log.missing))


def _differences(alike: Sequence[Log]) -> list[str]:
    """The names of the settings in which the logs differ."""
    every: list[Mapping[str, Any]] = [_settings(log) for log in alike]
    names = dict.fromkeys(name for settings in every for name in settings)
    return [name for name in names
            if len({json.dumps(settings.get(name)) for settings in every}) > 1]


def _errors(group: Sequence[Log]) -> dict[tuple[DomainKey, int | None], float]:
    errors: dict[tuple[DomainKey, int | None], float] = {}
    files: dict[tuple[DomainKey, int | None], Log] = {}
    for log in group:
        for corruption, severity, error, _ in log.errors:
            cell = (corruption, severity), log.seed
            if cell in errors:
                raise UserError(
                    f"{files[cell].file} ({files[cell].file_hash}) and {log.file} "
                    f"({log.file_hash}) hold the same cell, {log.method} of {log.host} on "
                    f"{corruption} {severity} with the same settings and seed: leave one out, or "
                    f"delete its file in {FOLDER}/")
            errors[cell], files[cell] = error, log
    return errors


def _counts(log: Log) -> list[int]:
    return sorted({count for *_, count in log.errors if count is not None})
