"""Corruptions: seeding, sizes, growing damage, and equality with plain reference formulas."""

from __future__ import annotations

import colorsys
import os
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tta_apm.data.corruptions import filters, functions
from tta_apm.data.corruptions.constants import CONSTANTS
from tta_apm.data.corruptions.functions import CORRUPTIONS, SEVERITIES, corrupt
from tta_apm.errors import UserError

SETS = ("cifar", "imagenet")
DRAW_NOTHING = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate",
                "jpeg_compression"}
# The photographs are no part of this project: whoever has them says where they are.
OFFICIAL_FROST = os.environ.get("TTA_APM_FROST_DIR") or None


def generator_of(corruption: str, severity: int, index: int, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, index, CORRUPTIONS.index(corruption), severity))


def levels(values: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(values, 0, 1) * 255)


def assert_same_but_for_rounding(image: np.ndarray, reference: np.ndarray) -> None:
    """Equal up to whole levels that were cut differently, which must be rare."""
    difference = np.abs(image.astype(int) - reference.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


# What every corruption owes

@pytest.mark.slow
@pytest.mark.parametrize("constants", SETS)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("height, width", [(32, 32), (64, 48), (224, 224), (5, 7), (1, 1)])
def test_any_size_gives_uint8_of_the_same_shape(corruption, constants, height, width, pictures):
    images = pictures(2, height, width)
    for severity in (1, 5):
        result = corrupt(images, corruption, severity, indices=[0, 1], constants=constants)
        assert result.shape == images.shape
        assert result.dtype == np.uint8


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_no_images_give_no_images(corruption):
    empty = np.zeros((0, 32, 32, 3), np.uint8)
    assert corrupt(empty, corruption, 1, indices=[]).shape == empty.shape


@pytest.mark.slow
@pytest.mark.parametrize("constants", SETS)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_an_image_does_not_depend_on_its_neighbours(corruption, constants, monkeypatch, pictures):
    images, indices = pictures(7, 40, 32), np.array([3, 1, 4, 15, 9, 2, 6])
    order = np.array([6, 2, 0, 5, 1, 4, 3])
    for severity in (2, 5):
        def run(some, where):
            return corrupt(some, corruption, severity, indices=where, constants=constants)
        batch = run(images, indices)
        alone = [run(images[k:k + 1], indices[k:k + 1])[0] for k in range(7)]
        np.testing.assert_array_equal(batch, alone)
        np.testing.assert_array_equal(batch[order], run(images[order], indices[order]))
        with monkeypatch.context() as patch:
            patch.setattr(functions, "CHUNK_BYTES", 2 * 8 * images[0].size)
            np.testing.assert_array_equal(batch, run(images, indices))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_seed_index_and_severity_decide_what_is_drawn(corruption, pictures):
    images = np.repeat(pictures(1, 32, 32), 2, axis=0)
    result = corrupt(images, corruption, 3, indices=[0, 1])
    other = corrupt(images, corruption, 3, indices=[0, 1], seed=1)
    np.testing.assert_array_equal(result, corrupt(images, corruption, 3, indices=[0, 1]))
    assert (result[0] == result[1]).all() == (corruption in DRAW_NOTHING)
    assert (result[0] == other[0]).all() == (corruption in DRAW_NOTHING)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_input_is_left_alone(corruption, pictures):
    images = pictures(2, 32, 32)
    before = images.copy()
    images.flags.writeable = False
    result = corrupt(images[:, ::-1], corruption, 3, indices=[0, 1])
    np.testing.assert_array_equal(images, before)
    assert not np.shares_memory(result, images)
    np.testing.assert_array_equal(
        result, corrupt(images[:, ::-1].copy(), corruption, 3, indices=[0, 1]))


# Steps, by their lower severity, at which the official constants themselves do less damage.
# glass_blur: as many rounds under more blur, which hides the moved pixels, or fewer rounds.
# elastic_transform: a weaker affine map. frost: as much frost over a darker image clips less.
FALLING = {
    ("cifar", "glass_blur"): {2, 4},
    ("imagenet", "glass_blur"): {1, 3},
    ("imagenet", "elastic_transform"): {2},
    ("imagenet", "frost"): {3},
}
ADD_LIGHT = {"snow", "frost", "fog"}


def damage(corruption: str, clean: np.ndarray, result: np.ndarray) -> float:
    """Mean difference in grey levels. Where light is added, which more severe rows trade against
    a darker image, what the pictures have no longer in common: 1 - their correlation."""
    if corruption not in ADD_LIGHT:
        return np.abs(result.astype(int) - clean).mean()
    pairs = zip(clean.reshape(len(clean), -1), result.reshape(len(result), -1))
    return 1 - np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs])


def assert_damage_grows(constants: str, corruption: str, images: np.ndarray,
                        frost_dir: str | None = None) -> None:
    amounts = []
    for row in CONSTANTS[constants][corruption]:
        if corruption == "frost":
            row = (*row, None if frost_dir is None else Path(frost_dir))
        if (constants, corruption) == ("cifar", "elastic_transform"):
            # Its affine map shrinks at every step: only the displacements are to grow.
            row = (*row[:2], 0)
        # The same draws at all severities, so that a few images suffice.
        draws = iter([np.random.default_rng(k) for k in range(len(images))])
        result = functions.FUNCTIONS[corruption](images, draws, *row)
        amounts.append(damage(corruption, images, result))
    falling = {k for k in SEVERITIES[:-1] if amounts[k] < amounts[k - 1]}
    assert falling <= FALLING.get((constants, corruption), set()), amounts


@pytest.mark.slow
@pytest.mark.parametrize("constants, num, side", [("cifar", 24, 32), ("imagenet", 2, 224)])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_damage_grows_with_severity(corruption, constants, num, side, pictures):
    assert_damage_grows(constants, corruption, pictures(num, side, side))


@pytest.mark.skipif(OFFICIAL_FROST is None,
                    reason="TTA_APM_FROST_DIR names no folder of the official frost pictures")
@pytest.mark.parametrize("constants, num, side", [("cifar", 24, 32), ("imagenet", 5, 224)])
def test_official_frost_hides_more_and_more(constants, num, side, pictures):
    assert_damage_grows(constants, "frost", pictures(num, side, side), OFFICIAL_FROST)


def test_unknown_corruption_names_the_nearest(pictures):
    with pytest.raises(UserError, match="'gausian_noise'.*did you mean 'gaussian_noise'"):
        corrupt(pictures(1, 8, 8), "gausian_noise", 1, indices=[0])


@pytest.mark.parametrize("change, message", [
    ({"severity": 0}, "severity must be one of 1, 2, 3, 4, 5, not 0"),
    ({"severity": 6}, "severity must be one of 1, 2, 3, 4, 5, not 6"),
    ({"severity": "3"}, "severity must be one of 1, 2, 3, 4, 5, not '3'"),
    ({"constants": "imagnet"}, "unknown constants 'imagnet': did you mean 'imagenet'"),
    ({"seed": -1}, "seed must be an integer of at least 0, not -1"),
    ({"images": np.zeros((1, 8, 8, 3))}, "images must be an array of uint8, not float64"),
    ({"images": [[0]]}, "images must be an array of uint8, not list"),
    ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, r"\[N,H,W,3\], not \[1, 3, 8, 8\]"),
    ({"images": np.zeros((8, 8, 3), np.uint8)}, r"\[N,H,W,3\], not \[8, 8, 3\]"),
    ({"indices": [0, 1]}, r"indices must be 1 integers, one per image, not int64 \[2\]"),
    ({"indices": [0.5]}, "indices must be 1 integers, one per image, not float64"),
    ({"indices": [-2]}, "indices must be at least 0, not -2"),
])
def test_bad_input_is_told_in_one_sentence(change, message):
    arguments = {"images": np.zeros((1, 8, 8, 3), np.uint8), "corruption": "fog", "severity": 1,
                 "indices": [0], **change}
    with pytest.raises(UserError, match=message):
        corrupt(**arguments)


# Constants

@pytest.mark.parametrize("constants", SETS)
def test_every_corruption_has_a_row_for_each_severity(constants):
    assert set(CONSTANTS[constants]) == set(CORRUPTIONS) == set(functions.FUNCTIONS)
    assert {len(rows) for rows in CONSTANTS[constants].values()} == {len(SEVERITIES)}


@pytest.mark.parametrize("constants, counts", [
    ("cifar", [7, 12, 16, 21, 26]), ("imagenet", [12, 16, 11, 13, 11])])
def test_number_of_zoom_factors(constants, counts):
    assert [len(factors) for factors, in CONSTANTS[constants]["zoom_blur"]] == counts


# Noise

def test_gaussian_noise_has_the_listed_standard_deviation():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    for severity in SEVERITIES:
        std, = CONSTANTS["cifar"]["gaussian_noise"][severity - 1]
        noisy = corrupt(grey, "gaussian_noise", severity, indices=np.arange(20)) / 255
        assert noisy.std() == pytest.approx(std, rel=0.02)
        assert noisy.mean() == pytest.approx((128 - 0.5) / 255, abs=0.001)  # levels are cut


def test_shot_noise_is_poisson():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    for severity in SEVERITIES:
        photons, = CONSTANTS["cifar"]["shot_noise"][severity - 1]
        noisy = corrupt(grey, "shot_noise", severity, indices=np.arange(20)) / 255
        assert noisy.mean() == pytest.approx((128 - 0.5) / 255, abs=0.003)
        assert noisy.std() == pytest.approx((128 / 255 / photons) ** 0.5, rel=0.03)


def test_impulse_noise_replaces_single_values(pictures):
    image = np.clip(pictures(1, 64, 48), 1, 254)
    for severity in SEVERITIES:
        amount, = CONSTANTS["imagenet"]["impulse_noise"][severity - 1]
        result = corrupt(image, "impulse_noise", severity, indices=[5], constants="imagenet")
        generator = generator_of("impulse_noise", severity, 5)
        flipped = generator.random(image[0].shape) <= amount
        salted = generator.random(image[0].shape) <= 0.5
        expected = image[0].copy()
        expected[flipped & salted], expected[flipped & ~salted] = 255, 0
        np.testing.assert_array_equal(result[0], expected)
        assert (result != image).mean() == pytest.approx(amount, rel=0.2)
        assert (result[result != image] == 255).mean() == pytest.approx(0.5, abs=0.07)


# Blur

def glass_reference(image, generator, sigma, reach, rounds):
    """The official double loop, whose swap on numpy views is a copy."""
    def soften(pixels):
        blurred = ndimage.gaussian_filter(pixels / 255, (sigma, sigma, 0), mode="nearest",
                                          truncate=4)
        return levels(blurred)
    height, width = image.shape[:2]
    pixels = soften(image)
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                dx, dy = generator.integers(-reach, reach, 2)
                pixels[row, column] = pixels[row + dy, column + dx]
    return soften(pixels)


@pytest.mark.parametrize("constants, severity", list(product(SETS, SEVERITIES)))
def test_glass_blur_equals_the_double_loop(constants, severity, pictures):
    images = pictures(2, 30, 24)
    result = corrupt(images, "glass_blur", severity, indices=[7, 3], constants=constants)
    for image, index, got in zip(images, (7, 3), result):
        generator = generator_of("glass_blur", severity, index)
        row = CONSTANTS[constants]["glass_blur"][severity - 1]
        np.testing.assert_array_equal(got, glass_reference(image, generator, *row))


def smear_reference(image, angle, radius, sigma):
    """Pixel by pixel, taps from the pixel outwards, positions kept inside the image."""
    height, width = image.shape[:2]
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-taps ** 2 / (2 * sigma ** 2)) / np.exp(-taps ** 2 / (2 * sigma ** 2)).sum()
    result = np.zeros(image.shape)
    for row, column, tap in product(range(height), range(width), taps):
        y = row + int(np.ceil(tap * np.sin(np.deg2rad(angle)) - 0.5))
        x = column + int(np.ceil(tap * np.cos(np.deg2rad(angle)) - 0.5))
        result[row, column] += weights[tap] * image[np.clip(y, 0, height - 1),
                                                    np.clip(x, 0, width - 1)]
    return np.floor(result + 0.5 / 257)  # 16 bits are rounded, then cut to 8


@pytest.mark.slow
@pytest.mark.parametrize("constants, severity", [("cifar", 1), ("cifar", 5), ("imagenet", 5)])
def test_motion_blur_equals_the_loop(constants, severity, pictures):
    image = pictures(1, 22, 17)
    result = corrupt(image, "motion_blur", severity, indices=[4], constants=constants)
    angle = generator_of("motion_blur", severity, 4).uniform(-45, 45)
    row = CONSTANTS[constants]["motion_blur"][severity - 1]
    assert_same_but_for_rounding(result[0], smear_reference(image[0], angle, *row))


def test_defocus_blur_keeps_white_white():
    """As OpenCV does at these severities; its kernels of ImageNet-C 1 to 3 sum to a bit below 1."""
    white = np.full((1, 32, 32, 3), 255, np.uint8)
    for severity in SEVERITIES:
        assert (corrupt(white, "defocus_blur", severity, indices=[0]) == 255).all()


def test_zoom_blur_is_the_mean_with_the_clean_image(pictures, zoom_reference):
    image = pictures(1, 32, 32)
    factors, = CONSTANTS["cifar"]["zoom_blur"][2]
    clean = image[0] / 255
    mean = (clean + sum(zoom_reference(clean, factor) for factor in factors)) / 17
    result = corrupt(image, "zoom_blur", 3, indices=[0])
    assert_same_but_for_rounding(result[0], levels(mean.astype(np.float32)))


# Weather

@pytest.mark.parametrize("constants, severity", [("cifar", 1), ("cifar", 4), ("imagenet", 3)])
def test_snow_equals_the_formula(constants, severity, pictures, zoom_reference):
    image = pictures(1, 32, 40)
    row = CONSTANTS[constants]["snow"][severity - 1]
    mean, std, factor, threshold, radius, sigma, share = row
    generator = generator_of("snow", severity, 8)
    layer = zoom_reference(generator.normal(mean, std, (32, 40))[..., None], factor)
    layer[layer < threshold] = 0
    angle = generator.uniform(-135, -45)
    flakes = filters.smear(levels(layer)[None], [angle], radius, sigma)[0] / 255
    clean = image[0].astype(np.float32) / 255
    red, green, blue = np.moveaxis(clean, -1, 0)
    grey = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    white = np.maximum(clean, grey[..., None] * 1.5 + 0.5)
    expected = share * clean + (1 - share) * white + flakes + np.rot90(flakes, 2)
    result = corrupt(image, "snow", severity, indices=[8], constants=constants)
    np.testing.assert_array_equal(result[0], levels(expected))


@pytest.mark.parametrize("height, width, side", [(32, 32, 32), (33, 20, 64)])
def test_fog_equals_the_formula(height, width, side, pictures):
    image = pictures(1, height, width) // 2
    draws = generator_of("fog", 3, 6).uniform(-1, 1, (1, side * side - 1))
    haze = filters.plasma(draws, side, 2.5)[0, :height, :width, None]
    brightest = image.max() / 255
    expected = (image[0] / 255 + 0.75 * haze) * brightest / (brightest + 0.75)
    result = corrupt(image, "fog", 3, indices=[6])
    np.testing.assert_array_equal(result[0], levels(expected))


def test_brightness_raises_value_of_hsv(pictures):
    image = pictures(1, 32, 32)
    image[0, 0, :4] = [(0, 0, 0), (255, 255, 255), (0, 200, 0), (90, 90, 90)]
    for severity in SEVERITIES:
        amount, = CONSTANTS["imagenet"]["brightness"][severity - 1]

        def raised(pixel):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            return colorsys.hsv_to_rgb(hue, saturation, min(1, value + amount))

        expected = np.apply_along_axis(raised, 2, image[0] / 255)
        result = corrupt(image, "brightness", severity, indices=[0], constants="imagenet")
        assert_same_but_for_rounding(result[0], levels(expected))


# Digital

def test_contrast_shrinks_around_the_mean_of_each_channel(pictures):
    image = pictures(1, 32, 20)
    clean = image[0] / 255
    for severity in SEVERITIES:
        factor, = CONSTANTS["cifar"]["contrast"][severity - 1]
        mean = clean.mean(axis=(0, 1), keepdims=True)
        result = corrupt(image, "contrast", severity, indices=[0])
        assert_same_but_for_rounding(result[0], levels((clean - mean) * factor + mean))


@pytest.mark.parametrize("constants, severity", list(product(SETS, SEVERITIES)))
def test_elastic_transform_equals_the_formula(constants, severity, pictures):
    side = 32
    image = pictures(1, side, side)
    row = CONSTANTS[constants]["elastic_transform"][severity - 1]
    strength, sigma, jitter = np.array(row) * side
    generator = generator_of("elastic_transform", severity, 2)
    moves = generator.uniform(-jitter, jitter, (3, 2))
    shifts = [strength * ndimage.gaussian_filter(generator.uniform(-1, 1, (side, side)), sigma,
                                                 mode="reflect", truncate=3) for _ in "xy"]
    # inverse of the map that takes three points to where they moved, as x, y columns
    before = 16 + 10 * np.array([(1, 1), (1, -1), (-1, -1)])
    back = np.linalg.solve(np.column_stack([before + moves, np.ones(3)]), before)
    y, x = np.indices((side, side))
    columns, rows = np.moveaxis(np.stack([x, y, np.ones_like(x)], axis=-1) @ back, -1, 0)
    expected = np.empty((side, side, 3))
    for channel in range(3):
        turned = ndimage.map_coordinates(image[0, ..., channel] / 255, [rows, columns], order=1,
                                         mode="mirror")
        expected[..., channel] = ndimage.map_coordinates(
            turned, [y + shifts[1], x + shifts[0]], order=1, mode="reflect")
    result = corrupt(image, "elastic_transform", severity, indices=[2], constants=constants)
    assert_same_but_for_rounding(result[0], levels(expected.astype(np.float32)))


def test_imagenet_elastic_is_244_on_224_pixels():
    strength, sigma, jitter = CONSTANTS["imagenet"]["elastic_transform"][0]
    np.testing.assert_allclose(np.array([strength, sigma, jitter]) * 224,
                               [244 * 2, 244 * 0.7, 244 * 0.1])


@pytest.mark.parametrize("height, width", [(32, 32), (30, 47)])
def test_pixelate_equals_pillow(height, width, pictures):
    image = pictures(1, height, width)
    for severity in SEVERITIES:
        share, = CONSTANTS["cifar"]["pixelate"][severity - 1]
        box = Image.Resampling.BOX
        small = Image.fromarray(image[0]).resize((int(width * share), int(height * share)), box)
        result = corrupt(image, "pixelate", severity, indices=[0])
        np.testing.assert_array_equal(result[0], np.asarray(small.resize((width, height), box)))


def test_jpeg_equals_pillow(pictures):
    image = pictures(1, 30, 47)
    for severity in SEVERITIES:
        file = BytesIO()
        quality, = CONSTANTS["imagenet"]["jpeg_compression"][severity - 1]
        Image.fromarray(image[0]).save(file, "JPEG", quality=quality)
        result = corrupt(image, "jpeg_compression", severity, indices=[0], constants="imagenet")
        np.testing.assert_array_equal(result[0], np.asarray(Image.open(file)))
