"""Weights: finding, checking and reading checkpoints of all formats without running their code."""
