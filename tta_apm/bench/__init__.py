"""Evaluation, sweeps, records and statistics."""
