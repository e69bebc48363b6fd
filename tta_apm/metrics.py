"""Metrics: the values of METRIC. Imports no torch."""

from __future__ import annotations

METRICS = ("error", "accuracy")
