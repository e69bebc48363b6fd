"""Statistics of per-image results: agreement, and the interval of a paired difference.

The interval is Tango's score interval for the difference of two paired proportions (Statistics in
Medicine 17:891, 1998), on an effective number of pairs. docs/intervals.md says why, and shows how
often it covers; benchmarks/intervals.py measures that.

The difference d of an image is 1 if only the first method is right, -1 if only the second is, and
else 0. With several cells (corruptions, seeds) it is the mean over them, in [-1, 1]. Over n images,
let D be the mean of d, A the mean of |d|, and V = mean(d²) - D². A trinomial of better, equal and
worse pairs with discordance A and difference D has the variance A - D² per pair. The effective
number of pairs m is the one for which (A - D²) / m is the variance V / n of the images' mean. It is
the effective sample size of survey statistics (Kish 1965; Korn and Graubard 1998 for intervals of
proportions):

    m = n (n (A - D²) + c) / (n V + c),    c = 1/2

With one cell V = A - D², so m = n and the interval is Tango's. If an image has the same result in
all cells, m = n as well. If cells are independent, m approaches n times their number. The constant
c adds half an image on which all cells are discordant to both sums: a few discordant images do not
show how large the discordance of an image can be, and without any, m = n.

The score interval holds the differences δ that its test does not reject at level α:

    m (D - δ)² <= z² (2 q + δ (1 - δ)),    z the 1 - α/2 quantile of the normal distribution,

where q is the maximum likelihood estimate of the share of worse pairs under the difference δ,

    q = (sqrt(h² + 8 w δ (1 - δ)) - h) / 4,    h = (2 - b + w) δ - b - w,

with the observed shares b = (A + D) / 2 of better and w = (A - D) / 2 of worse pairs. At δ = 0 the
test is McNemar's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

# The constant c above.
PSEUDO_IMAGES = 0.5
BISECTIONS = 50  # the ends are exact to 2 / 2**50


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """The share of images with the same class in both predictions, int [N] each."""
    if first.shape != second.shape or not first.size:
        raise ValueError(f"shapes {first.shape} and {second.shape} cannot be compared")
    return float(np.mean(first == second))


def per_image(indices: Sequence[np.ndarray], values: Sequence[np.ndarray],
              weights: Sequence[float]) -> np.ndarray:
    """Combine the values of several cells into one per image, whose mean is the weighted sum of the
    cells' means.

    The same images recur in every corruption and seed, so the sample is one of images. If all cells
    have the same images, the result is the weighted sum of each image's values.

    Args:
        indices: for each cell, the positions of its images in the data set, int [N].
        values: for each cell, the values of these images, [N].
        weights: one per cell.

    Returns:
        float64 [M], ordered by position, for the M images that are in any of the cells. An image
        contributes 0 to a cell that lacks it.
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
    """The score interval of the mean of paired differences, by the formula above.

    Args:
        differences: one per image, float [N]; from several cells by `per_image`.
        level: nominal coverage.
        extreme: the largest difference that an image can have; 1 if all cells have the same
            images.

    Returns:
        The ends of the interval, within [-1, 1]. Its length is never 0, and it does not depend on
        the order of the images.
    """
    if differences.ndim != 1 or not differences.size:
        raise ValueError(f"differences are one number per image, not of shape {differences.shape}")
    images = len(differences)
    differences = np.sort(differences)  # a sum's last bit depends on the order
    discordance, square = float(np.abs(differences).mean()), float(np.square(differences).mean())
    mean = min(max(float(differences.mean()), -1.0), 1.0)  # rounding can exceed 1
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
        better, worse: their shares of the pairs.
        pairs: the effective number of pairs.
        quantile: the normal quantile z.
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
