"""Text features on disk: the text tower of a large CLIP takes minutes over 80,000 prompts.

A file per model, weights, class names and templates, in $XDG_CACHE_HOME/tta_apm/text_features or
below ~/.cache. Of processes that want the same at a time one works it out: see once.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from tta_apm.backbones.once import once
from tta_apm.cache import cache_folder

NAME = "text_features"
# Raise it when the computation of features from prompts changes.
FORMAT = 1


def cached(compute: Callable[[], Tensor], *, model: str, weights: str, class_names: Sequence[str],
           templates: Sequence[str], device: str) -> Tensor:
    """Text features [K,D] from the disk, or from `compute()`, which are then stored there.

    Args:
        model: name of the architecture, which determines the tokenizer.
        weights: name and hash of their content.
        class_names: K names.
        templates: in their order.
        device: its type, since each rounds differently.
    """
    key = json.dumps([FORMAT, model, weights, list(class_names), list(templates), device])
    where = folder()
    if where is None:
        return compute()
    file = where / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    return once(file, lambda: {NAME: compute()})[NAME]


def folder() -> Path | None:
    """The folder of the files; None if there is no home folder, as in containers."""
    caches = cache_folder()
    return None if caches is None else caches / NAME
