"""Digits: scikit-learn's handwritten digits, a data set that needs no download.

1,797 scans of 8x8 pixels (UCI Optical Recognition of Handwritten Digits, Alpaydin & Kaynak 1998):
1,200 training images of the packaged backbones and 597 test images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import Clean, DataSet

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATE_SET = "digits"

NUM_TRAINING = 1200
SIDE = 32
BRIGHTEST = 16  # of scikit-learn's pixels


def digits(*, data_dir: str, frost_dir: str | None) -> Clean:
    """The 597 test images, 32x32. They come with scikit-learn, so both arguments are unused."""
    _, test = split()
    return _clean("digits", test, source=train_split)


def digits_c(*, data_dir: str, frost_dir: str | None) -> Corrupted:
    """The test images under the 15 corruptions with CIFAR-C's constants. `data_dir` is unused."""
    clean = digits(data_dir=data_dir, frost_dir=frost_dir)
    return Corrupted("digits_c", clean, constants="cifar", frost_dir=frost_dir)


def train_split() -> Clean:
    """The 1,200 images that the packaged backbones are trained on."""
    train, _ = split()
    return _clean("digits_train", train)


def split() -> tuple[np.ndarray, np.ndarray]:
    """Positions in load_digits() of the training and of the test images, which never change."""
    # RandomState, since numpy guarantees its stream across versions, but not default_rng's.
    order = np.random.RandomState(0).permutation(len(load_digits().target))
    return order[:NUM_TRAINING], order[NUM_TRAINING:]


def _clean(name: str, positions: np.ndarray,
           source: Callable[[], DataSet] | None = None) -> Clean:
    scans = load_digits()
    pixels = np.stack([_enlarge(image) for image in scans.images[positions]])
    labels = scans.target[positions].astype(np.int64)
    return Clean(name, pixels, labels, CLASS_NAMES, TEMPLATE_SET, source)


def _enlarge(image: np.ndarray) -> np.ndarray:
    """An 8x8 image with values 0 to 16 as uint8 [32,32,3] with values 0 to 255."""
    grey = np.round(image * (255 / BRIGHTEST)).astype(np.uint8)
    large = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(large)[:, :, None], 3, axis=2)
