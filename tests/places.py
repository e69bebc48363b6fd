"""Where tests find what is not in the repository. A module of its own: conftest is several."""

from __future__ import annotations

from pathlib import Path

# The repository.
ROOT = Path(__file__).parents[1]
# Real images and published weights beside the project; tests that use them skip where it is absent.
SHARED = ROOT.parent / "shared"
