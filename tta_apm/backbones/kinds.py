"""KINDS: what kinds of frozen backbone there are. No torch: a config is checked without it."""

from __future__ import annotations

# Each has its section of a config, MODEL and WEIGHTS, and the module that loads it.
KINDS = {"classifier": "tta_apm.backbones.classifiers", "clip": "tta_apm.backbones.clip",
         "mae": "tta_apm.backbones.mae", "rotation": "tta_apm.backbones.rotation"}
