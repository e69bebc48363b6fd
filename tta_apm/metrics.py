"""METRICS: what a table may print of predictions against labels. No torch."""

from __future__ import annotations

METRICS = ("error", "accuracy")
