"""Statistics of per-image results: agreement, and the interval of a paired difference.

The interval is Tango's score interval for the difference of two paired proportions (Statistics in
Medicine 17:891, 1998), on an effective number of pairs. docs/intervals.md says why, and shows how
often it covers; benchmarks/intervals.py measures that.

Let an image's difference d lie in [-1, 1]: whether the one is right less whether the other is, a
mean over corruptions and seeds where there are several cells. With the means D of d, A of |d| and
V = mean(d²) - D² over n images, the trinomial (better, equal, worse) with the discordance A and the
difference D has the variance A - D². The number of pairs that gives it the variance of the images'
mean, V / n, is the effective sample size of survey statistics (Kish 1965; Korn and Graubard 1998
for intervals of proportions):

    m = n (n (A - D²) + c) / (n V + c),    c = 1/2

With one cell V = A - D², so m = n and the interval is Tango's. Where the same image has the same
result in all cells m = n as well, where cells are independent m nears n times their number. c is
half an image on which all cells are discordant, added to both sums: few discordant images do not
tell how large the discordance of one can be, and where there is none m = n.

The score interval holds the differences δ that its test does not reject at level α:

    m (D - δ)² <= z² (2 q + δ (1 - δ)),    z the 1 - α/2 quantile of the normal distribution,

where q is the most likely share of worse pairs if the difference is δ,

    q = (sqrt(h² + 8 w δ (1 - δ)) - h) / 4,    h = (2 - b + w) δ - b - w,

with the observed shares b = (A + D) / 2 of better and w = (A - D) / 2 of worse pairs. At δ = 0 the
test is McNemar's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

# What is added to both sums of the effective number of pairs: the c above.
PSEUDO_IMAGES = 0.5
BISECTIONS = 50  # the ends are right to 2 / 2**50


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the images to which both give the same class; arguments int [N]."""
    if first.shape != second.shape or not first.size:
        raise ValueError(f"shapes {first.shape} and {second.shape} cannot be compared")
    return float(np.mean(first == second))


def per_image(indices: Sequence[np.ndarray], values: Sequence[np.ndarray],
              weights: Sequence[float]) -> np.ndarray:
    """One number per image out of several cells, whose mean is the weighted sum of their means.

    The same images recur in every corruption and with every seed, so the sample is one of images,
    not of cells' entries. Where all cells have the same images, this is each image's weighted sum.

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


def paired_interval(differences: np.ndarray, *, level: float = 0.95, extreme: float = 1.0
                    ) -> tuple[float, float]:
    """Score interval of the mean of paired differences; the formula stands above.

    Args:
        differences: one per image, float [N]; of several cells, their mean (`per_image`).
        level: nominal coverage.
        extreme: the largest difference that an image can have. It is 1 where all cells have the
            same images.

    Returns:
        The ends of the interval, within [-1, 1]. They are apart from each other however few
        differences there are, and do not depend on the order of the images.
    """
    if differences.ndim != 1 or not differences.size:
        raise ValueError(f"differences are one number per image, not of shape {differences.shape}")
    images = len(differences)
    differences = np.sort(differences)  # a sum's last bit depends on the order
    discordance, square = float(np.abs(differences).mean()), float(np.square(differences).mean())
    mean = min(max(float(differences.mean()), -1.0), 1.0)  # beyond 1 by the last bit
    pseudo = PSEUDO_IMAGES * extreme
    pairs = images * ((images * (discordance - mean ** 2) + pseudo)
                      / (images * (square - mean ** 2) + pseudo * extreme))
    better, worse = (discordance + mean) / 2, (discordance - mean) / 2
    quantile = NormalDist().inv_cdf((1 + level) / 2)
    return (_lower_end(better, worse, pairs, quantile),
            -_lower_end(worse, better, pairs, quantile))


def _lower_end(better: float, worse: float, pairs: float, quantile: float) -> float:
    """The smallest difference that Tango's score test does not reject.

    Args:
        better, worse: shares of the pairs.
        pairs: their number, which may be a fraction.
        quantile: of the normal distribution.
    """
    mean = better - worse
    low, high = -1.0, mean
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        linear = (2 - better + worse) * middle - better - worse
        root = math.sqrt(max(linear ** 2 + 8 * worse * middle * (1 - middle), 0))
        variance = (root - linear) / 2 + middle * (1 - middle)
        if pairs * (mean - middle) ** 2 > quantile ** 2 * variance:
            low = middle
        else:
            high = middle
    return high
