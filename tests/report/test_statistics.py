"""The paired interval is Tango's for one cell, covers with few differences, and samples images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from tta_apm.report.statistics import agreement, paired_interval, per_image

Z = stats.norm.ppf(0.975)


def pairs(better, worse, size):
    """Differences of `size` images in one cell."""
    return np.repeat([1.0, -1.0, 0.0], [better, worse, size - better - worse])


def draw(rng, size, better=0.06, worse=0.03, cells=1):
    """Mean over independent cells of differences whose expectation is better - worse."""
    drawn = rng.choice([1, 0, -1], (cells, size), p=[better, 1 - better - worse, worse])
    return drawn.mean(axis=0)


def test_one_cell_has_tangos_published_interval():
    """6 and 16 discordant pairs of 161, complete response (Cavo et al. 2012): chapter 8 of
    Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017)."""
    low, high = paired_interval(pairs(6, 16, 161))
    assert f"{low:.4f} {high:.4f}" == "-0.1240 -0.0054"


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_intervals_that_can_be_worked_by_hand(size):
    end = Z ** 2 / (size + Z ** 2)
    np.testing.assert_allclose(paired_interval(pairs(0, 0, size)), (-end, end), atol=1e-9)
    np.testing.assert_allclose(paired_interval(pairs(size, 0, size)), (1 - 2 * end, 1), atol=1e-9)


@pytest.mark.parametrize("better, size", [(0, 8), (3, 20), (25, 50), (41, 60)])
def test_without_equal_pairs_it_is_wilsons_interval_of_the_better_ones(better, size):
    wilson = stats.binomtest(better, size).proportion_ci(method="wilson")
    np.testing.assert_allclose(paired_interval(pairs(better, size - better, size)),
                               (2 * wilson.low - 1, 2 * wilson.high - 1), atol=1e-9)


@pytest.mark.parametrize("better, worse, size", [(2, 1, 20), (5, 0, 50), (12, 2, 50), (0, 3, 200)])
def test_the_ends_solve_the_score_equation_with_a_likelihood_maximised_numerically(
        better, worse, size):
    for end in paired_interval(pairs(better, worse, size)):
        def loss(share):  # of worse pairs, when the difference is `end`
            shares = np.array([share + end, share, 1 - 2 * share - end])
            counts = np.array([better, worse, size - better - worse])
            return -np.sum(counts * np.log(np.maximum(shares, 1e-300)))

        bounds = (max(0, -end), (1 - end) / 2)
        share = optimize.minimize_scalar(loss, bounds=bounds, method="bounded",
                                         options={"xatol": 1e-12}).x
        deviation = np.sqrt(size * (2 * share + end - end ** 2))
        assert abs(better - worse - size * end) / deviation == pytest.approx(Z, abs=1e-3)


@pytest.mark.slow
def test_it_excludes_0_where_the_exact_mcnemar_test_is_clear():
    clear = 0
    for better in range(25):
        for worse in range(25):
            low, high = paired_interval(pairs(better, worse, 60))
            exact = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
            if exact < 0.025 or exact > 0.13:
                assert (low > 0 or high < 0) == (exact < 0.025), (better, worse)
                clear += 1
    assert clear > 500


@pytest.mark.slow
@pytest.mark.parametrize("size, better, worse, cells, seed", [
    (50, 0.015, 0.005, 1, 0),  # the percentile bootstrap covers 62 %
    (50, 0.02, 0.0, 1, 1),  # 64 %
    (20, 0.01, 0.0, 15, 2),  # 80 %
    (300, 0.06, 0.03, 1, 3),
    (200, 0.05, 0.05, 15, 4),
])
def test_it_covers_the_true_difference(size, better, worse, cells, seed):
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(1000):
        low, high = paired_interval(draw(rng, size, better, worse, cells))
        covered += low <= better - worse <= high
    assert covered >= 930


def test_it_covers_where_an_image_differs_in_most_corruptions_or_in_none():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        shared = rng.random(50) < 0.05
        own = rng.random((15, 50)) < 0.05
        follows = rng.random((15, 50)) < 0.7
        low, high = paired_interval(np.where(follows, shared, own).mean(axis=0))
        covered += low <= 0.05 <= high
    assert covered >= 930  # by the images' variance alone, without c: 67 %


def test_with_many_differences_it_is_no_wider_than_the_normal_interval():
    for cells in (1, 15):
        values = draw(np.random.default_rng(5), 2000, 0.1, 0.1, cells)
        low, high = paired_interval(values)
        assert high - low == pytest.approx(2 * Z * values.std() / np.sqrt(2000), rel=0.03)


def test_the_level_is_that_of_the_interval():
    values = draw(np.random.default_rng(3), 4000)
    narrow, wide = paired_interval(values, level=0.5), paired_interval(values, level=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    deviation = values.std() / np.sqrt(4000)  # 0.674 of it are the quartiles of a normal
    np.testing.assert_allclose(np.subtract(*narrow[::-1]), 2 * 0.674 * deviation, rtol=0.02)


@pytest.mark.parametrize("cells", [1, 3, 15])
def test_exchanged_sides_negate_it_and_the_order_of_the_images_does_not_matter(cells):
    rng = np.random.default_rng(4)
    values = draw(rng, 500, cells=cells)
    low, high = paired_interval(values)
    np.testing.assert_allclose(paired_interval(-values), (-high, -low), atol=1e-12)
    assert paired_interval(rng.permutation(values)) == (low, high)


def test_it_holds_the_mean_lies_within_the_bounds_and_is_never_a_point():
    rng = np.random.default_rng(6)
    for _ in range(500):
        share = rng.dirichlet([0.3, 0.3, 0.3])
        cells = rng.choice([1, 3, 15, 45])
        values = rng.choice([1, 0, -1], (cells, rng.integers(1, 60)), p=share).mean(axis=0)
        low, high = paired_interval(values)
        assert -1 <= low <= values.mean() + 1e-12 and values.mean() - 1e-12 <= high <= 1
        assert high - low > 0.02
    np.testing.assert_allclose(paired_interval(np.full(40, 1 + 4e-16))[1], 1)


def test_one_more_better_pair_moves_both_ends_up_and_more_images_narrow_it():
    ends = np.array([paired_interval(pairs(better, 3, 40)) for better in range(38)])
    assert (np.diff(ends, axis=0) > 0).all()
    widths = [np.diff(paired_interval(pairs(0, 0, size))) for size in (1, 2, 10, 100)]
    assert (np.diff(widths, axis=0) < 0).all()


@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((3, 2))])
def test_it_takes_one_number_per_image(wrong):
    with pytest.raises(ValueError, match="one number per image"):
        paired_interval(wrong)


def test_cells_of_other_images_are_as_many_pairs():
    """Two cells without an image in common weigh each image of the small one more."""
    indices = [np.arange(10), np.arange(10, 50)]
    weight = per_image(indices, [np.ones(10), np.ones(40)], [0.5, 0.5])
    assert weight.max() == pytest.approx(2.5)
    end = Z ** 2 / (50 / 2.5 + Z ** 2)
    np.testing.assert_allclose(paired_interval(np.zeros(50), extreme=weight.max()), (-end, end))


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
    values = draw(np.random.default_rng(7), 300)
    index = np.arange(300)
    pooled = per_image([index] * 15, [values] * 15, [1 / 15] * 15)
    np.testing.assert_allclose(paired_interval(pooled), paired_interval(values))


def test_independent_columns_are_new_evidence():
    rng = np.random.default_rng(8)
    wide, narrow = (np.diff(paired_interval(draw(rng, 4000, 0.1, 0.1, cells))) for cells in (1, 15))
    assert narrow == pytest.approx(wide / np.sqrt(15), rel=0.1)


def test_agreement():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(np.array([1, 2]), np.array([1]))
