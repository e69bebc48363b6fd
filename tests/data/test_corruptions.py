"""Corruptions: seeding, sizes, and stronger effects at higher severities."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from corruption_checks import SETS
from tta_apm.data.corruptions import functions
from tta_apm.data.corruptions.constants import CONSTANTS
from tta_apm.data.corruptions.functions import CORRUPTIONS, SEVERITIES, corrupt
from tta_apm.errors import UserError

DRAW_NOTHING = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate",
                "jpeg_compression"}
# The photographs are not part of this project; an environment variable may name their folder.
OFFICIAL_FROST = os.environ.get("TTA_APM_FROST_DIR") or None


# Properties of every corruption

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


@pytest.mark.slow
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


# Steps, by their lower severity, at which the official constants have a weaker effect.
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
        # The same random numbers at all severities, so that a few images suffice.
        generators = iter([np.random.default_rng(k) for k in range(len(images))])
        result = functions.FUNCTIONS[corruption](images, generators, *row)
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
