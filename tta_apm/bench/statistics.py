"""Statistics of per-image results: agreement, and the paired bootstrap of a difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Counts held in memory at a time, 32 MB of them.
CHUNK = 4_000_000


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the images to which both give the same class; arguments int [N]."""
    if first.shape != second.shape or not first.size:
        raise ValueError(f"shapes {first.shape} and {second.shape} cannot be compared")
    return float(np.mean(first == second))


def per_image(indices: Sequence[np.ndarray], values: Sequence[np.ndarray],
              weights: Sequence[float]) -> np.ndarray:
    """One number per image out of several cells, whose mean is the weighted sum of their means.

    The same images recur in every corruption and with every seed, so a bootstrap must draw images,
    not cells' entries. Where all cells have the same images, this is each image's weighted sum.

    Args:
        indices: for each cell the positions of its images in the data set, int [N].
        values: for each cell the values of these images, [N].
        weights: one per cell.

    Returns:
        float64 [M], in the order of the positions, for the M images that are in any of the cells;
        an image adds nothing to a cell that lacks it.
    """
    size = 1 + max(int(index.max()) for index in indices)
    total = np.zeros(size)
    present = np.zeros(size, bool)
    for index, value, weight in zip(indices, values, weights):
        total += np.bincount(index, value, minlength=size) * (weight / len(index))
        present[index] = True
    return total[present] * np.count_nonzero(present)


def paired_bootstrap(differences: np.ndarray, *, level: float = 0.95, num_resamples: int = 10_000,
                     seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of paired differences.

    Drawing N images anew and counting how often each value came is a multinomial draw over the
    distinct values, of which there are few: three for one cell.

    Args:
        differences: one per image, float [N]; of several columns, their mean (`per_image`).
        level: nominal coverage.

    Returns:
        The ends of the interval. Equal arguments give equal ends.
    """
    if differences.ndim != 1 or not differences.size:
        raise ValueError(f"differences are one number per image, not of shape {differences.shape}")
    # Rounded, as sums that differ in their last bit are one value.
    values, counts = np.unique(np.round(differences, 12), return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    rows = max(1, CHUNK // len(values))
    for start in range(0, num_resamples, rows):
        part = means[start:start + rows]
        drawn = generator.multinomial(len(differences), counts / len(differences), len(part))
        part[:] = drawn @ values / len(differences)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
