"""KINDS: what kinds of frozen backbone there are. No torch: a config is checked without it."""

from __future__ import annotations

# Each has its section of a config, MODEL and WEIGHTS.
KINDS = ("classifier", "clip", "mae", "rotation")
