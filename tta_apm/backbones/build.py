"""build: a backbone of either kind, importing only what that kind needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tta_apm.backbones.backbone import Backbone
from tta_apm.errors import UserError, nearest

KINDS = ("classifier", "clip")


def build(kind: str, model: str, weights: str, *, class_names: Sequence[str],
          templates: Sequence[str], device: torch.device | str) -> Backbone:
    """Load the backbone that a config's section CLASSIFIER or CLIP describes.

    Args:
        kind: "classifier" or "clip".
        model, weights: see load_classifier and load_clip.
        class_names: K names, of which a classifier needs the number only.
        templates: prompt templates; a classifier has no use for them.

    Raises:
        UserError: for an unknown kind, model or weights.
    """
    # Imported here: open_clip and timm take seconds each.
    if kind == "clip":
        from tta_apm.backbones.clip import load_clip
        return load_clip(model, weights, class_names=class_names, templates=templates,
                         device=device)
    if kind == "classifier":
        from tta_apm.backbones.classifiers import load_classifier
        return load_classifier(model, weights, num_classes=len(class_names), device=device)
    raise UserError(f"unknown kind of backbone {kind!r}: {nearest(kind, KINDS)}")
