"""Provenance: the commit and the package versions of a record."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def commit() -> str:
    """The commit of our code; "" if it is not in a git checkout."""
    return commit_of(Path(__file__).parent)


def commit_of(folder: Path) -> str:
    """The first 12 digits of the commit of a folder in a git checkout, else "".

    An untracked folder inside a checkout, e.g. an unpacked archive, has no commit.
    """
    if not ask_git(folder, "ls-files", "."):
        return ""
    return ask_git(folder, "rev-parse", "--short=12", "HEAD")


def ask_git(folder: Path, *words: str) -> str:
    """The output of a git command in a folder; "" if it fails or git is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], timeout=30, check=True,
                              capture_output=True, text=True, encoding="utf-8", errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that may affect numbers."""
    found = {"python": platform.python_version()}
    for name in ("tta-apm", "torch", "timm", "open_clip_torch", "robustbench", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
