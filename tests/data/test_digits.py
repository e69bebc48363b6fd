"""Digits: the fixed split and the 32x32 images."""

import hashlib

import numpy as np

from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.data.digits import CLASS_NAMES, digits, digits_c, split, train_split


def test_split_is_disjoint_whole_and_fixed():
    train, test = split()
    assert len(train) == 1200 and len(test) == 597
    assert sorted([*train, *test]) == list(range(1797))
    digest = hashlib.sha256(train.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("42b3e41b98057cba")


def test_images_are_full_range_rgb_of_32_pixels():
    data = digits(data_dir="", frost_dir=None)
    assert data.pixels.shape == (597, 32, 32, 3) and data.pixels.dtype == np.uint8
    assert data.pixels.min() == 0 and data.pixels.max() == 255
    assert (data.pixels[..., :1] == data.pixels).all()
    assert data.labels.dtype == np.int64 and data.labels.shape == (597,)
    assert set(data.labels) == set(range(10)) and len(CLASS_NAMES) == 10


def test_images_are_enlarged_upright():
    """The mean over 4x4 blocks is approximately the small image."""
    from sklearn.datasets import load_digits
    _, test = split()
    data = digits(data_dir="", frost_dir=None)
    small = load_digits().images[test] * (255 / 16)
    blocks = data.pixels[..., 0].reshape(597, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), small.ravel())[0, 1] > 0.98


def test_train_and_test_images_differ():
    train, test = train_split(), digits(data_dir="", frost_dir=None)
    assert len(train.pixels) == 1200
    assert not {image.tobytes() for image in train.pixels} & {
        image.tobytes() for image in test.pixels}


def test_corrupted_digits_keep_labels_and_clean_images():
    clean = digits(data_dir="", frost_dir=None)
    corrupted = digits_c(data_dir="", frost_dir=None)
    indices = np.array([5, 0, 17])
    assert (corrupted.labels == clean.labels).all()
    assert corrupted.template_set == "digits"
    assert (corrupted.images(Domain("digits_c", CLEAN, 0), indices) == clean.pixels[indices]).all()


def test_corrupted_digits_are_corrupted():
    corrupted = digits_c(data_dir="", frost_dir=None)
    indices = np.arange(4)
    images = corrupted.images(Domain("digits_c", "gaussian_noise", 5), indices)
    clean = corrupted.images(Domain("digits_c", CLEAN, 0), indices)
    assert images.shape == clean.shape and images.dtype == np.uint8
    assert np.abs(images.astype(int) - clean).mean() > 5
