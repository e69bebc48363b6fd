"""build: a backbone of any kind, importing only what that kind needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.inputs import Inputs
from tta_apm.backbones.kinds import KINDS
from tta_apm.data.dataset import Outputs
from tta_apm.errors import UserError, nearest


def build(kind: str, model: str, weights: str, *, class_names: Sequence[str],
          templates: Sequence[str], device: torch.device | str,
          outputs: Outputs | None = None, given: Inputs = Inputs()) -> Backbone:
    """Load the backbone that a config's section of its kind describes.

    Args:
        kind: one of KINDS.
        model, weights: see load_classifier, load_clip, load_mae and load_rotation.
        class_names: K names, of which all but CLIP need the number only.
        templates: prompt templates, for CLIP.
        outputs: of a classifier or head with more classes, those to keep.
        given: what the section says of the images that a classifier or CLIP takes.

    Raises:
        UserError: for an unknown kind, model or weights.
    """
    num_classes = outputs.total if outputs else len(class_names)
    keep = outputs and outputs.kept
    # Imported here: open_clip and timm take seconds each.
    if kind == "clip":
        from tta_apm.backbones.clip import load_clip
        return load_clip(model, weights, class_names=class_names, templates=templates,
                         device=device, given=given)
    if kind == "classifier":
        from tta_apm.backbones.classifiers import load_classifier
        return load_classifier(model, weights, num_classes=num_classes, device=device, keep=keep,
                               given=given)
    if kind == "mae":
        from tta_apm.backbones.mae import load_mae
        return load_mae(model, weights, num_classes=num_classes, device=device, keep=keep)
    if kind == "rotation":
        from tta_apm.backbones.rotation import load_rotation
        return load_rotation(model, weights, num_classes=num_classes, device=device, keep=keep)
    raise UserError(f"unknown kind of backbone {kind!r}: {nearest(kind, KINDS)}")
