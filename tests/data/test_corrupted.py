"""Corrupted: the constants for images of a size."""

from __future__ import annotations

import numpy as np
import pytest

from tta_apm.data.corruptions.dataset import on_the_fly
from tta_apm.data.corruptions.functions import corrupt
from tta_apm.data.dataset import CLEAN, Clean, Domain


def images_of(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    return Clean("some", pixels, np.zeros(2, np.int64), ("a",), "single")


@pytest.mark.parametrize("size, name", [
    ((28, 28), "cifar"), ((32, 32), "cifar"), ((64, 64), "cifar"), ((84, 84), "cifar"),
    ((85, 85), "imagenet"), ((96, 96), "imagenet"), ((224, 224), "imagenet"),
    ((64, 224), "imagenet"), ((9, 9), "cifar"), ((384, 384), "imagenet")])
def test_the_nearest_constants_are_taken(size, name):
    clean = images_of(*size)
    made = on_the_fly(clean, None)
    domain, indices = Domain("some", "contrast", 5), np.arange(2)
    expected = corrupt(clean.pixels, "contrast", 5, indices=indices, constants=name)
    assert (made.images(domain, indices) == expected).all()
    assert made.describe(domain).endswith(
        f"with {name}-C constants (the nearest to {size[0]}×{size[1]})")


def test_constants_are_part_of_what_the_images_are():
    clean = images_of(32, 32)
    signatures = {on_the_fly(clean, None, name).signature(Domain("some", "fog", 5), 2)
                  for name in ("auto", "cifar", "imagenet")}
    assert len(signatures) == 2  # auto is cifar here, and so its images are
    assert on_the_fly(clean, None, "imagenet").describe(Domain("some", CLEAN, 0)) == "some"
