"""Baselines: one file per method. They use only the interface that third-party methods have."""
