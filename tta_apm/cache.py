"""The user's cache folder: what can be deleted at any time and made again. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/tta_apm or ~/.cache/tta_apm; None if the user has no home folder."""
    caches = os.environ.get("XDG_CACHE_HOME")
    if caches:
        return Path(caches, "tta_apm")
    try:
        return Path.home() / ".cache" / "tta_apm"
    except RuntimeError:  # HOME is not set and the user has no entry
        return None
