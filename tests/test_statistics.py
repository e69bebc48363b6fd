"""The paired bootstrap covers, is deterministic, and draws images rather than entries."""

from __future__ import annotations

import numpy as np
import pytest

from tta_apm.bench.statistics import agreement, paired_bootstrap, per_image


def differences(rng, size, better=0.06, worse=0.03):
    """Student correct - teacher correct, int [size]; its expectation is better - worse."""
    return rng.choice([1, 0, -1], size, p=[better, 1 - better - worse, worse])


def test_the_interval_covers_the_true_difference():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = paired_bootstrap(differences(rng, 300), num_resamples=2000)
        covered += low <= 0.03 <= high
    assert 180 <= covered <= 198


def test_it_agrees_with_a_loop_that_draws_images_one_by_one():
    values = differences(np.random.default_rng(1), 200)
    rng = np.random.default_rng(2)
    means = [np.mean([values[rng.integers(200)] for _ in range(200)]) for _ in range(3000)]
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(paired_bootstrap(values), expected, atol=0.006)


def test_the_level_is_that_of_the_interval():
    values = np.random.default_rng(3).normal(size=400)
    narrow, wide = paired_bootstrap(values, level=0.5), paired_bootstrap(values, level=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    deviation = values.std() / np.sqrt(400)  # 0.674 of it are the quartiles of a normal
    np.testing.assert_allclose(np.subtract(*narrow[::-1]), 2 * 0.674 * deviation, rtol=0.05)


@pytest.mark.parametrize("value", [0, 1, -1, 0.25])
def test_equal_differences_give_a_point(value):
    np.testing.assert_allclose(paired_bootstrap(np.full(50, value)), (value, value), atol=1e-12)


def test_shift_scale_and_sign_carry_over():
    values = differences(np.random.default_rng(4), 500).astype(float)
    low, high = paired_bootstrap(values)
    np.testing.assert_allclose(paired_bootstrap(3 * values + 2), (3 * low + 2, 3 * high + 2))
    np.testing.assert_allclose(paired_bootstrap(-values), (-high, -low), atol=0.003)


def test_it_is_deterministic_and_the_order_of_the_images_does_not_matter():
    rng = np.random.default_rng(5)
    values = differences(rng, 500)
    assert paired_bootstrap(values) == paired_bootstrap(rng.permutation(values))


def test_many_distinct_values_are_drawn_in_chunks(monkeypatch):
    values = np.random.default_rng(6).normal(size=1000)
    monkeypatch.setattr("tta_apm.bench.statistics.CHUNK", 30_000)
    low, high = paired_bootstrap(values, num_resamples=2000)
    assert low < values.mean() < high
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std() / np.sqrt(1000), rtol=0.1)


@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((3, 2))])
def test_it_takes_one_number_per_image(wrong):
    with pytest.raises(ValueError, match="one number per image"):
        paired_bootstrap(wrong)


def test_per_image_is_the_mean_over_columns_whatever_the_order_of_the_index():
    indices = [np.array([0, 1, 2]), np.array([2, 0, 1])]
    values = [np.array([1, 0, -1]), np.array([1, 1, 0])]
    np.testing.assert_allclose(per_image(indices, values, [0.5, 0.5]), [1, 0, 0])


def test_per_image_keeps_the_mean_of_cell_means_where_cells_have_different_images():
    indices = [np.array([0, 1, 2, 3]), np.array([2, 7])]
    values = [np.array([1, 1, 0, 1]), np.array([0, -1])]
    pooled = per_image(indices, values, [0.5, 0.5])
    assert pooled.shape == (5,)
    np.testing.assert_allclose(pooled.mean(), 0.5 * 0.75 - 0.5 * 0.5)


def test_the_same_images_in_every_column_are_no_new_evidence():
    values = differences(np.random.default_rng(7), 300)
    index = np.arange(300)
    pooled = per_image([index] * 15, [values] * 15, [1 / 15] * 15)
    np.testing.assert_allclose(paired_bootstrap(pooled), paired_bootstrap(values))


def test_agreement():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(np.array([1, 2]), np.array([1]))
