"""Filters: equality with scipy and with plain loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from tta_apm.data.corruptions import filters
from tta_apm.data.corruptions.constants import CONSTANTS

SETS = ("cifar", "imagenet")


def test_disk_kernels_keep_their_sums():
    sums = [filters.disk(*row).sum() for row in CONSTANTS["imagenet"]["defocus_blur"]]
    np.testing.assert_allclose(sums, [1, 1, 1, 1.013, 1.011], atol=0.0005)


@pytest.mark.parametrize("constants", SETS)
def test_defocus_is_a_mirrored_correlation(constants, pictures):
    images = pictures(2, 40, 33) / 255
    for row in CONSTANTS[constants]["defocus_blur"]:
        kernel = filters.disk(*row)
        expected = ndimage.correlate(images, kernel[None, :, :, None].astype(float), mode="mirror")
        np.testing.assert_allclose(filters.correlate(images, kernel), expected, atol=1e-12)


ZOOM_SETS = {factors for constants in SETS for factors, in CONSTANTS[constants]["zoom_blur"]}
SNOW_ZOOMS = {(row[2],) for constants in SETS for row in CONSTANTS[constants]["snow"]}


@pytest.mark.parametrize("height, width", [(32, 32), (48, 37), (5, 7)])
def test_zoom_equals_scipy(height, width, pictures, zoom_reference):
    image = pictures(1, height, width)[0] / 255
    for factors in ZOOM_SETS | SNOW_ZOOMS:
        got = filters.zoom(height, width, factors) @ image.reshape(-1, 3)
        expected = sum(zoom_reference(image, factor) for factor in factors)
        np.testing.assert_allclose(got.reshape(image.shape), expected, atol=1e-12)


@pytest.mark.parametrize("fold, mode", [(filters.mirrored, "mirror"),
                                        (filters.reflected, "reflect")])
def test_sampling_equals_map_coordinates(fold, mode, pictures):
    images = pictures(2, 21, 30) / 255
    points = np.random.default_rng(0).uniform(-90, 120, (2, 2, 21, 30))
    got = filters.sample(images, *points, fold)
    for image, where, result in zip(images, points.swapaxes(0, 1), got):
        for channel in range(3):
            expected = ndimage.map_coordinates(image[..., channel], where, order=1, mode=mode)
            np.testing.assert_allclose(result[..., channel], expected, atol=1e-12)


def test_affine_map_takes_three_points_where_it_should():
    """Each displaced point has its old position as source; positions in between by linearity."""
    moves = np.random.default_rng(0).integers(-3, 4, (4, 3, 2))
    rows, columns = filters.affine(33, 48, moves)
    before = np.array([24, 16]) + 11 * np.array([(1, 1), (1, -1), (-1, -1)])
    for k in range(4):
        for (x, y), (dx, dy) in zip(before, moves[k]):
            assert columns[k, y + dy, x + dx] == pytest.approx(x)
            assert rows[k, y + dy, x + dx] == pytest.approx(y)


IMAGEMAGICK = {  # results of ImageMagick 6.9.11 Q16 for the image below, by angle, radius and sigma
    (30., 3, 2.): [[30, 38, 74, 122, 115, 111, 118, 81], [168, 103, 80, 111, 101, 116, 148, 169],
                   [52, 152, 166, 86, 136, 170, 152, 146], [186, 131, 91, 138, 96, 105, 122, 90],
                   [119, 149, 119, 147, 208, 161, 118, 144],
                   [140, 111, 116, 93, 104, 158, 235, 235]],
    (-110., 6, 1.5): [[0, 8, 35, 85, 157, 57, 110, 54], [80, 55, 49, 65, 103, 77, 97, 114],
                      [64, 86, 127, 82, 60, 167, 126, 169],
                      [113, 161, 106, 95, 105, 117, 154, 122],
                      [75, 169, 101, 142, 159, 113, 109, 106],
                      [116, 128, 188, 119, 101, 106, 124, 172]],
}


@pytest.mark.parametrize("angle, radius, sigma", IMAGEMAGICK)
def test_motion_blur_is_imagemagicks(angle, radius, sigma):
    image = (np.arange(48).reshape(1, 6, 8, 1) ** 2 * 11 % 256).astype(np.uint8)
    got = filters.smear(image, [angle], radius, sigma)
    np.testing.assert_array_equal(got[0, ..., 0], IMAGEMAGICK[angle, radius, sigma])


def plasma_reference(numbers, side, decay):
    """Diamond-square on a torus, point by point."""
    height = np.zeros((side, side))
    numbers = iter(numbers)
    step, wibble = side, 100.0

    def fill(rows, columns, neighbours):
        values = {(y, x): sum(height[(y + dy) % side, (x + dx) % side] for dy, dx in neighbours)
                  for y in rows for x in columns}
        for position, total in values.items():
            height[position] = total / 4 + wibble * next(numbers) * wibble

    while step >= 2:
        half = step // 2
        on, between = range(0, side, step), range(half, side, step)
        cross = [(-half, 0), (half, 0), (0, -half), (0, half)]
        fill(between, between, list(product((-half, half), repeat=2)))
        fill(on, between, cross)
        fill(between, on, cross)
        step, wibble = half, wibble / decay
    return (height - height.min()) / (height.max() - height.min())


@pytest.mark.parametrize("side, decay", [(2, 3), (16, 1.4), (32, 2.5)])
def test_plasma_equals_diamond_square_point_by_point(side, decay):
    numbers = np.random.default_rng(0).uniform(-1, 1, (3, side * side - 1))
    maps = filters.plasma(numbers, side, decay)
    assert maps.min() == 0 and maps.max() == 1
    for got, row in zip(maps, numbers):
        np.testing.assert_allclose(got, plasma_reference(row, side, decay), atol=1e-12)
