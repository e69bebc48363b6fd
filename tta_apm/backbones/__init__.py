"""Frozen networks: classifiers and CLIP."""
