"""Weights: files of all kinds are found, checked and read, and nothing in them runs."""
