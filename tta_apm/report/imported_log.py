"""Log: one run of another repository, as it is stored in a results folder. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tta_apm.data.corruptions.constants import SEVERITIES
from tta_apm.errors import UserError
from tta_apm.names import clean_all

CLEAN = "clean"
# [corruption, severity, error as a fraction, number of images or None]
Errors = list[tuple[str, int, float, "int | None"]]


@dataclass(frozen=True)
class Log:
    """One run of one method, as far as its log states it.

    Args:
        host: the repository that wrote the log.
        file, file_hash: name and hash of the log file.
        method, backbone: as the host names them.
        hyper_parameters: those to show; `settings` has all.
        dataset: our name of it.
        setting: the host's name of it, whose meaning may differ from ours.
        batch_size, seed: None if the log does not state them.
        errors: one entry for each domain that was run.
        settings: all settings that the log states, by dotted keys.
        missing: corruption and severity of the domains that the run was to have but lacks.
        ours: whether the method is one of ours, run by the host.
    """

    host: str
    file: str
    file_hash: str
    method: str
    hyper_parameters: dict[str, Any]
    backbone: str
    dataset: str
    setting: str
    batch_size: int | None
    seed: int | None
    errors: Errors
    settings: dict[str, Any] = field(default_factory=dict)
    missing: list[tuple[str, int]] = field(default_factory=list)
    ours: bool = False


FIELDS = tuple(each.name for each in fields(Log))


def checked(content: Mapping[str, Any], where: str) -> Log:
    """A log of the fields in `content`, with clean names.

    Raises:
        UserError: for a value of the wrong type or out of range; it names `where`, the file.
    """
    log = Log(**{name: clean_all(value) for name, value in content.items()})

    def need(holds: bool, what: str, value: Any) -> None:
        if not holds:
            raise UserError(f"{where}: its {what} is {value!r}, which is not valid: leave the file "
                            "out or correct it")

    for name in ("host", "file", "file_hash", "method", "backbone", "dataset", "setting"):
        value = getattr(log, name)
        need(isinstance(value, str) and bool(value), name, value)
    for name in ("hyper_parameters", "settings"):
        need(isinstance(getattr(log, name), dict), name, getattr(log, name))
    need(log.batch_size is None or is_int(log.batch_size, 1), "batch size", log.batch_size)
    need(log.seed is None or is_int(log.seed, -(1 << 63)), "seed", log.seed)
    need(isinstance(log.errors, list) and bool(log.errors), "list of errors", log.errors)
    seen = set()
    for entry in log.errors:
        need(isinstance(entry, list) and len(entry) == 4, "domain", entry)
        name, severity, error, count = entry
        need(isinstance(name, str) and bool(name) and is_int(severity, 0)
             and severity <= max(SEVERITIES) and (name == CLEAN) == (severity == 0),
             "domain (a corruption and a severity of 1 to 5)", [name, severity])
        need(isinstance(error, (int, float)) and not isinstance(error, bool) and 0 <= error <= 1,
             f"error on {name} {severity}, as a fraction,", error)
        need(count is None or is_int(count, 1), f"number of images of {name} {severity}", count)
        need((name, severity) not in seen, "domain that it has twice", [name, severity])
        seen.add((name, severity))
    return replace(log, errors=[(name, severity, error, count)
                                for name, severity, error, count in log.errors],
                   missing=[(str(name), severity) for name, severity in log.missing])


def is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
