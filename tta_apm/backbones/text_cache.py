"""A cache of text features on disk: a large CLIP takes minutes for ImageNet's 80,000 prompts.

There is one file per model, weights, class names and templates, in
$XDG_CACHE_HOME/tta_apm/text_features or ~/.cache/tta_apm/text_features. Processes that need the
same features at the same time compute them once; see tensor_cache.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from tta_apm.backbones.tensor_cache import load_or_compute
from tta_apm.cache import cache_folder

NAME = "text_features"
# To be increased when the computation of features from prompts changes.
FORMAT = 1


def cached(compute: Callable[[], Tensor], *, model: str, weights: str, class_names: Sequence[str],
           templates: Sequence[str], device: str) -> Tensor:
    """Text features [K,D] from the cache, or from `compute()`, whose result is then cached.

    Args:
        model: name of the architecture, which determines the tokenizer.
        weights: name and content hash of the weights.
        class_names: K names.
        templates: the templates in their order.
        device: type of the device, since rounding differs between devices.
    """
    key = json.dumps([FORMAT, model, weights, list(class_names), list(templates), device])
    where = folder()
    if where is None:
        return compute()
    file = where / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    return load_or_compute(file, lambda: {NAME: compute()})[NAME]


def folder() -> Path | None:
    """The folder of the cache; None without a home folder, e.g. in containers."""
    caches = cache_folder()
    return None if caches is None else caches / NAME
