"""Failures: the failed cells of a sweep and the reasons, in a file. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from tta_apm.atomic import atomic_write

FILE = "failures.json"


def read_failures(folder: Path) -> dict[str, str]:
    """The cells that failed in the last run, by name, with the reasons."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(reason) for name, reason in content.items()} \
        if isinstance(content, dict) else {}


def write_failures(folder: Path, reasons: dict[str, str]) -> None:
    """Write the failed cells with their reasons; without any, the file is removed."""
    if reasons:
        atomic_write(folder / FILE, json.dumps(reasons, indent=1).encode())
    else:
        (folder / FILE).unlink(missing_ok=True)
