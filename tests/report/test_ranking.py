"""Ranking: AUROC by hand, ties, cells of the same images, and how often its interval covers."""

from __future__ import annotations

import numpy as np
import pytest

from tta_apm.report.ranking import Ranking, Scored, bootstrap_weights, mean_auroc


def scored(score, positive, image=None):
    score = np.asarray(score, float)
    return Scored(np.arange(len(score)) if image is None else np.asarray(image), score,
                  np.asarray(positive, bool))


def by_hand(score, positive):
    """Pair by pair."""
    wins = [(high > low) + (high == low) / 2
            for high, right in zip(score, positive) if right
            for low, other in zip(score, positive) if not other]
    return np.mean(wins)


def test_auroc_is_the_share_of_pairs_with_ties_as_half():
    generator = np.random.default_rng(0)
    score = generator.integers(0, 6, 40)
    positive = generator.random(40) < 0.3
    found = mean_auroc([scored(score, positive)], bootstrap_weights(40))
    assert found.value == pytest.approx(by_hand(score, positive), abs=1e-12)


def test_a_resample_is_what_its_images_give():
    generator = np.random.default_rng(1)
    score, positive = generator.integers(0, 9, 30), generator.random(30) < 0.5
    weights = bootstrap_weights(30, seed=3, resamples=20)
    found = mean_auroc([scored(score, positive)], weights)
    for value, counts in zip(found.resampled, weights[1:].astype(int)):
        assert value == pytest.approx(
            by_hand(np.repeat(score, counts), np.repeat(positive, counts)), abs=1e-12)


def test_an_image_is_in_all_cells_as_often_as_it_was_drawn():
    """Then twice the same cell is no more evidence than once."""
    generator = np.random.default_rng(2)
    cell = scored(generator.random(50), generator.random(50) < 0.5)
    weights = bootstrap_weights(50)
    turned = Scored(cell.image[::-1], cell.score[::-1], cell.positive[::-1])
    once, twice = mean_auroc([cell], weights), mean_auroc([cell, turned], weights)
    assert twice.interval() == pytest.approx(once.interval())


def test_an_image_may_be_of_both_kinds():
    """As clean images beside themselves under a corruption."""
    image = [0, 1, 2, 0, 1, 2]
    cell = scored([1, 2, 3, 2, 3, 4], [0, 0, 0, 1, 1, 1], image)
    assert mean_auroc([cell], bootstrap_weights(3)).value == pytest.approx(by_hand(*cell[1:]))


def test_a_difference_is_taken_resample_by_resample():
    generator = np.random.default_rng(4)
    positive = generator.random(60) < 0.5
    score = positive + generator.normal(size=60)
    weights = bootstrap_weights(60)
    first, second = (mean_auroc([scored(values, positive)], weights)
                     for values in (score, score + generator.normal(size=60) / 100))
    low, high = first.less(second).interval()
    assert high - low < (first.interval()[1] - first.interval()[0]) / 5
    assert first.less(first) == Ranking(0, pytest.approx(np.zeros(1000)))


def test_a_cell_of_one_kind_has_no_say():
    mixed, alone = scored([1, 2], [0, 1]), scored([1, 2], [1, 1])
    assert mean_auroc([mixed, alone], bootstrap_weights(2)).value == 1
    with pytest.raises(ValueError, match="no cell holds"):
        mean_auroc([alone], bootstrap_weights(2))


@pytest.mark.slow
def test_the_interval_covers():
    """Normal scores one standard deviation apart have an AUROC of Φ(1/√2) = 0.760."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        positive = np.arange(100) < 40
        score = positive + generator.normal(size=100)
        low, high = mean_auroc([scored(score, positive)],
                               bootstrap_weights(100, resamples=300)).interval()
        covered += low <= 0.7602 <= high
    assert 175 <= covered <= 199
