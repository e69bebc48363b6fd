"""Provenance: the commit and the versions that a record is made with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def commit() -> str:
    """The commit of the code, "" outside a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], timeout=10,
                              cwd=Path(__file__).parent, capture_output=True, text=True,
                              encoding="utf-8", errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers, those that are installed."""
    found = {"python": platform.python_version()}
    for name in ("tta-apm", "torch", "timm", "open_clip_torch", "robustbench", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
