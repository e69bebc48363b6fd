"""Paths for tests, also outside the repository; not in conftest.py, of which there are several."""

from __future__ import annotations

from pathlib import Path

# The repository.
ROOT = Path(__file__).parents[1]
# Real images and published weights beside the project; without it, tests that need them skip.
SHARED = ROOT.parent / "shared"
