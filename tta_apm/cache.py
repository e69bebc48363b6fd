"""The user's cache: what is dear to make again and can always be thrown away. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/tta_apm, or the same below ~/.cache; None where there is no home."""
    caches = os.environ.get("XDG_CACHE_HOME")
    if caches:
        return Path(caches, "tta_apm")
    try:
        return Path.home() / ".cache" / "tta_apm"
    except RuntimeError:  # HOME is not set and the user has no entry
        return None
