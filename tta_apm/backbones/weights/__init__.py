"""Weights: checkpoints of all formats are found, checked and read; none can run code."""
