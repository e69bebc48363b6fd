"""Ranking: how well a score separates positive from negative images (AUROC), with an interval.

AUROC is the probability that a positive image scores higher than a negative one; a tie counts half.
Intervals are percentile bootstraps over images: an image that is in several cells (corruptions,
seeds) is resampled in all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000


class Scored(NamedTuple):
    """The images of one cell, with a score for each.

    Attributes:
        image: index in the sample of images, int [N], from 0.
        score: [N], higher for images that are more likely positive.
        positive: bool [N].
    """

    image: np.ndarray
    score: np.ndarray
    positive: np.ndarray


class Ranking(NamedTuple):
    """A mean AUROC.

    Attributes:
        value: that of the sample.
        resampled: that of each resample, [R]; NaN if all its images are of one kind.
    """

    value: float
    resampled: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The ends of the percentile interval."""
        low, high = np.nanquantile(self.resampled, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def less(self, other: Ranking) -> Ranking:
        """The difference to another ranking of the same images and resamples."""
        return Ranking(self.value - other.value, self.resampled - other.resampled)


def bootstrap_weights(num_images: int, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """The count of each image in each resample, float [R+1,N]; the first is the sample itself."""
    counts = np.random.default_rng(seed).multinomial(
        num_images, np.full(num_images, 1 / num_images), resamples)
    return np.concatenate([np.ones((1, num_images)), counts])


def mean_auroc(cells: Sequence[Scored], weights: np.ndarray) -> Ranking:
    """The mean AUROC over the cells that hold images of both kinds.

    Args:
        weights: see bootstrap_weights.

    Raises:
        ValueError: if no cell has images of both kinds.
    """
    values = np.array([_auroc(cell, weights) for cell in cells
                       if 0 < np.count_nonzero(cell.positive) < len(cell.positive)])
    if not len(values):
        raise ValueError("no cell holds positive and negative images")
    counts = np.count_nonzero(~np.isnan(values), axis=0)  # cells where a resample has both kinds
    means = np.divide(np.nansum(values, axis=0), counts, out=np.full(len(counts), np.nan),
                      where=counts > 0)
    return Ranking(float(means[0]), means[1:])


def _auroc(cell: Scored, weights: np.ndarray) -> np.ndarray:
    """AUROC [R+1] for each row of weights; NaN if all its images are of one kind."""
    order = np.argsort(cell.score, kind="stable")
    score = cell.score[order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])  # of ties
    counts = weights[:, cell.image[order]]
    positive = np.add.reduceat(counts * cell.positive[order], starts, axis=1)
    negative = np.add.reduceat(counts * ~cell.positive[order], starts, axis=1)
    below = negative.cumsum(axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    wins = (positive * below).sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
