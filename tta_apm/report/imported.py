"""Imported: results of other repositories, kept in a results folder, as rows of its tables.

`tta-apm import LOG ... --into FOLDER` writes FOLDER/imported/*.json. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from tta_apm.errors import UserError
from tta_apm.report.given import GivenRow
from tta_apm.report.logs import Log
from tta_apm.writing import write_aside

FOLDER = "imported"


def save(log: Log, folder: Path) -> Path:
    """Keep a log in a results folder; the same log again replaces itself."""
    name = re.sub(r"[^A-Za-z0-9.]+", "_", f"{log.host}-{log.method}-{log.backbone}")
    path = folder / FOLDER / f"{name}-{log.file_hash}.json"
    content = {"imported": True, **asdict(log)}
    write_aside(path, json.dumps(content, indent=1, sort_keys=True).encode())
    return path


def load(folder: Path) -> list[Log]:
    """The logs that a results folder keeps. UserError for a file that is none."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(Log(**{field.name: content[field.name] for field in fields(Log)}))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is no imported log ({error!r}): delete it and import the log "
                            "again") from error
    return found


def rows(found: Sequence[Log]) -> list[GivenRow]:
    """The rows of a table: logs that differ in nothing but their seed and domains share one."""
    groups: dict[str, list[Log]] = {}
    for log in found:
        key = json.dumps([log.host, log.method, log.hyper_parameters, log.backbone, log.dataset,
                          log.setting, log.batch_size, _counts(log)], sort_keys=True)
        groups.setdefault(key, []).append(log)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Log]) -> GivenRow:
    first = group[0]
    parts = [first.setting, *(f"n={count}" for count in _counts(first))]
    if first.batch_size is not None:
        parts.append(f"b{first.batch_size}")
    parts += [f"{name} {value}" for name, value in first.hyper_parameters.items()
              if value is not None]
    files = ", ".join(sorted({log.file for log in group}))
    return GivenRow(
        method=first.method, backbone=first.backbone, dataset=first.dataset,
        errors={((corruption, severity), log.seed): error
                for log in group for corruption, severity, error, _ in log.errors},
        protocol=" · ".join([first.host, *parts]), source=f"from {first.host}, {files}",
        mark="imported", told={
            "setting": first.setting, "batch_size": first.batch_size,
            "num_images": " ".join(map(str, _counts(first))),
            "hyper_parameters": json.dumps(first.hyper_parameters, sort_keys=True)})


def _counts(log: Log) -> list[int]:
    return sorted({count for *_, count in log.errors if count is not None and count > 0})
