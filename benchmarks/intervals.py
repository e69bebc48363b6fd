"""Coverage: how often the interval of a paired difference contains the true one, and its width.

    python benchmarks/intervals.py                   (minutes on one core)

Images are independent, with 0 to 20 % discordant pairs in a cell, of which a half, three quarters
or all are in one direction. A corruption of an image has the image's own result with the
probability that the scenario states, else a new random result; a seed has its corruption's result
in the same way. So the distribution of the values is known, and with it the true difference. For
one cell, and for cells that always agree, the distribution is trinomial, and coverage is the exact
sum over its outcomes; the other scenarios are simulated.

"Ideal" is the narrowest symmetric interval around the observed difference that covers in 95 % of
the cases, computed from the known distribution.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

import common
from tta_apm.report import statistics

SIZES = (20, 50, 200, 1000)
DISCORDANT = (0, 0.01, 0.02, 0.05, 0.1, 0.2)
ONE_SIDED = (0, 0.5, 1)  # the true difference as a share of the discordant pairs
SHOWN = (0, 0.01, 0.05, 0.2)  # their widths are printed
NEGLIGIBLE = 1e-9  # probability of an outcome that is left out


class Scenario(NamedTuple):
    """Cells of an image: corruptions × seeds, and the probabilities of inheriting results."""
    corruptions: int
    seeds: int
    follows_image: float
    follows_corruption: float

    def __str__(self) -> str:
        text = f"{self.corruptions} × {self.seeds}"
        if self.corruptions > 1:
            text += f", corruptions {self.follows_image:g}"
        return text + f", seeds {self.follows_corruption:g}" * (self.seeds > 1)


SCENARIOS = (
    Scenario(1, 1, 1, 1), Scenario(1, 3, 1, 0.7), Scenario(15, 1, 0, 1), Scenario(15, 1, 0.3, 1),
    Scenario(15, 1, 0.7, 1), Scenario(15, 1, 1, 1), Scenario(15, 3, 0, 0.7),
    Scenario(15, 3, 0.7, 0.7))
Interval = Callable[[np.ndarray], tuple[float, float]]


class Measured(NamedTuple):
    coverage: float
    width: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000, help="of what is simulated")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    parser.add_argument("--bootstrap", type=int, default=500, help="trials of the bootstrap")
    parser.add_argument("--pseudo", type=float, default=statistics.PSEUDO_IMAGES,
                        help="the constant c of the interval")
    parser.add_argument("--append", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    statistics.PSEUDO_IMAGES = options.pseudo
    rows, lowest, count = [], (1.0, ""), 0
    for scenario, size in product(SCENARIOS, options.sizes):
        row, low, cells = line(scenario, size, options.trials, options.bootstrap)
        rows.append(row)
        lowest, count = min(lowest, (low, f"{scenario}, {size} images")), count + cells
    head = ["corruptions × seeds", "images", "lowest %", "bootstrap %",
            *(f"width at {100 * share:g} %" for share in SHOWN)]
    common.publish(
        "Coverage of the 95 % interval", [
            f"Of {count} cells ({options.trials:,} trials each, or exactly) "
            f"the lowest coverage is {100 * lowest[0]:.1f} %: {lowest[1]}. The lowest over "
            "the shares of discordant pairs and of one direction, beside that of the percentile "
            f"bootstrap (1,000 resamples, {options.bootstrap:,} trials). Mean widths in points, "
            "true difference half the discordant pairs: interval / bootstrap / ideal.", "",
            *common.table(head, rows)], torch.device("cpu"), options.append)


def line(scenario: Scenario, size: int, trials: int, bootstrap_trials: int
         ) -> tuple[list[str], float, int]:
    """A line of the table, the lowest coverage in it, and of how many cells."""
    lowest, lowest_bootstrap, widths, count = 1.0, 1.0, [], 0
    for discordant, one_sided in product(DISCORDANT, ONE_SIDED):
        if one_sided and not discordant:
            continue
        count += 1
        values, shares = distribution(scenario, discordant, discordant * one_sided)
        rng = np.random.default_rng([*map(int, np.multiply(scenario, 10)), size, count])
        counts, weights = outcomes(shares, size, trials, rng)
        mine = measure(statistics.paired_interval, values, shares, counts, weights)
        counts_of_few = rng.multinomial(size, shares, bootstrap_trials)
        theirs = measure(lambda differences: bootstrap(differences, rng), values, shares,
                         counts_of_few, np.full(bootstrap_trials, 1 / bootstrap_trials))
        lowest = min(lowest, mine.coverage)
        lowest_bootstrap = min(lowest_bootstrap, theirs.coverage)
        if discordant in SHOWN and (one_sided == 0.5 or not discordant):
            ideal = ideal_width(values, shares, counts, weights)
            widths.append(" / ".join(f"{100 * width:.2f}"
                                     for width in (mine.width, theirs.width, ideal)))
    return ([str(scenario), str(size), f"{100 * lowest:.1f}", f"{100 * lowest_bootstrap:.0f}",
             *widths], lowest, count)


def distribution(scenario: Scenario, discordant: float, difference: float
                 ) -> tuple[np.ndarray, np.ndarray]:
    """The values that an image's difference can have, and their probabilities."""
    new = np.array([(discordant - difference) / 2, 1 - discordant, (discordant + difference) / 2])
    shares = np.zeros(1)
    for of_image, result in zip(new, np.eye(3)):
        corruption = mixture(scenario.follows_image, result, new)
        seeds = sum(probability * repeated(mixture(scenario.follows_corruption, own, new),
                                           scenario.seeds)
                    for probability, own in zip(corruption, np.eye(3)))
        shares = shares + of_image * repeated(seeds, scenario.corruptions)
    cells = scenario.corruptions * scenario.seeds
    values = np.arange(-cells, cells + 1) / cells
    whole = np.isin(values, (-1, 0, 1))
    if not shares[~whole].any():  # all cells agree: a trinomial as of one
        values, shares = values[whole], shares[whole]
    return values, shares / shares.sum()


def mixture(share: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return share * first + (1 - share) * second


def repeated(shares: np.ndarray, times: int) -> np.ndarray:
    """Probabilities of a sum of independent values, equally spaced."""
    total = np.ones(1)
    for _ in range(times):
        total = np.convolve(total, shares)
    return total


def outcomes(shares: np.ndarray, size: int, trials: int, rng: np.random.Generator
             ) -> tuple[np.ndarray, np.ndarray]:
    """Counts of each value among the images, int [T, V], and the probabilities of these, [T]."""
    if len(shares) > 3:
        return rng.multinomial(size, shares, trials), np.full(trials, 1 / trials)
    from scipy.stats import multinomial

    worse, better = np.divmod(np.arange((size + 1) ** 2), size + 1)
    counts = np.stack([worse, size - worse - better, better], axis=1)
    counts = counts[counts[:, 1] >= 0]
    weights = multinomial.pmf(counts, size, shares)
    kept = weights > NEGLIGIBLE
    return counts[kept], weights[kept] / weights[kept].sum()


def measure(interval: Interval, values: np.ndarray, shares: np.ndarray, counts: np.ndarray,
            weights: np.ndarray) -> Measured:
    """Coverage of the true difference, and the mean width."""
    truth = values @ shares
    found: dict[bytes, tuple[float, float]] = {}
    for one in counts:
        key = one.tobytes()
        if key not in found:
            found[key] = interval(np.repeat(values, one))
    ends = np.array([found[one.tobytes()] for one in counts])
    covers = (ends[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= ends[:, 1])
    return Measured(float(covers @ weights), float((ends[:, 1] - ends[:, 0]) @ weights))


def bootstrap(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The interval of the percentile bootstrap over images."""
    values, counts = np.unique(differences, return_counts=True)
    counted = rng.multinomial(len(differences), counts / len(differences), 1000)
    low, high = np.quantile(counted @ values / len(differences), [0.025, 0.975])
    return float(low), float(high)


def ideal_width(values: np.ndarray, shares: np.ndarray, counts: np.ndarray, weights: np.ndarray
                ) -> float:
    misses = np.abs(counts @ values / counts[0].sum() - values @ shares)
    order = np.argsort(misses)
    reached = np.searchsorted(np.cumsum(weights[order]), 0.95)
    return 2 * float(misses[order][min(reached, len(order) - 1)])


if __name__ == "__main__":
    main()
