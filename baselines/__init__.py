"""Baselines: one file per method, each behind the same interface that a stranger would use."""
