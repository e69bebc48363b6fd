"""Functions for tests of corruptions."""

from __future__ import annotations

import numpy as np

from tta_apm.data.corruptions.functions import CORRUPTIONS

SETS = ("cifar", "imagenet")


def generator_of(corruption: str, severity: int, index: int, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, index, CORRUPTIONS.index(corruption), severity))


def levels(values: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(values, 0, 1) * 255)


def assert_same_but_for_rounding(image: np.ndarray, reference: np.ndarray) -> None:
    """Check equality up to grey levels that were truncated differently, which must be rare."""
    difference = np.abs(image.astype(int) - reference.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02
