"""The 15 common corruptions of Hendrycks & Dietterich (2019), computed from clean images.

Constants and formulas are those of hendrycks/robustness at 8190fe3 (make_cifar_c.py,
make_imagenet_c.py), including its quirks: results are truncated, not rounded, to grey levels; some
blur kernels do not sum to one; glass blur copies pixels where it seems to swap them.

The results cannot equal the published CIFAR-10-C and ImageNet-C files bit for bit: the official
scripts set no seed, so noise, angles, crops and displacements are equal in distribution only. The
published ImageNet-C images were also resized to 256 and cropped to 224 before the corruption and
saved as JPEG of quality 85 after it; callers do that. Motion blur, also of snow flakes, is that of
ImageMagick; benchmarks/imagemagick.py compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from tta_apm.data.corruptions.constants import CONSTANTS, CORRUPTIONS, SEVERITIES
from tta_apm.data.corruptions.filters import (
    affine, correlate, disk, displace, mirrored, plasma, reflected, sample, smear, smoother, zoom)
from tta_apm.data.corruptions.frost import PICTURES, frost_folder, frost_picture, frost_source
from tta_apm.errors import UserError, choose

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "frost_source"]

# One per image; corruptions without randomness do not use them.
Generators = Iterator[np.random.Generator]

# Images processed at a time, in bytes as float64, so that they stay in the processor's cache.
CHUNK_BYTES = 2 ** 21


def corrupt(images: np.ndarray, corruption: str, severity: int, *, indices: np.ndarray,
            constants: str = "cifar", seed: int = 0,
            frost_dir: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Corrupted copies uint8 [N,H,W,3] of images uint8 [N,H,W,3] of any size.

    The result for an image depends on its pixels, its index in the data set, the corruption, the
    severity and the seed, not on the other images of the batch. It may change with the versions of
    numpy, scipy and Pillow.

    Args:
        images: RGB images, which are not changed.
        corruption: one of CORRUPTIONS.
        severity: 1 to 5.
        indices: int [N], the position of each image in its data set.
        constants: "cifar" for the severities of CIFAR-C, made for 32x32 pixels, or "imagenet"
            for those of ImageNet-C, made for 224x224. The lengths of elastic_transform are
            proportional to the shorter side; those of the blurs are in pixels at any size.
        seed: of the whole data set, at least 0.
        frost_dir: folder with the official frost pictures. None uses those of an installed
            imagecorruptions, or paints some; see frost_source.

    Raises:
        UserError: for an invalid argument.
    """
    indices = np.asarray(indices)
    _check(images, corruption, severity, indices, constants, seed)
    row = CONSTANTS[constants][corruption][severity - 1]
    if corruption == "frost":
        row = (*row, frost_folder(frost_dir))
    number = CORRUPTIONS.index(corruption)
    generators = (np.random.default_rng((seed, index, number, int(severity)))
                  for index in indices.tolist())
    result = np.empty(images.shape, np.uint8)
    size = max(1, CHUNK_BYTES // (8 * images[0].size)) if len(images) else 1
    for start in range(0, len(images), size):
        chunk = np.ascontiguousarray(images[start:start + size])
        of_chunk = islice(generators, len(chunk))
        result[start:start + size] = FUNCTIONS[corruption](chunk, of_chunk, *row)
    return result


def _check(images: np.ndarray, corruption: str, severity: int, indices: np.ndarray,
           constants: str, seed: int) -> None:
    """Raise UserError for an invalid argument of `corrupt`."""
    choose("", "corruption", corruption, CORRUPTIONS)
    if not isinstance(severity, (int, np.integer)) or severity not in SEVERITIES:
        raise UserError(f"severity must be one of 1, 2, 3, 4, 5, not {severity!r}")
    choose("", "constants", constants, CONSTANTS)
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UserError(f"seed must be an integer of at least 0, not {seed!r}")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise UserError(f"images must be an array of uint8, not {kind}")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise UserError(f"images must be [N,H,W,3], not {list(images.shape)}")
    if indices.shape != images.shape[:1] or (len(indices) and indices.dtype.kind not in "iu"):
        raise UserError(f"indices must be {len(images)} integers, one per image, not "
                        f"{indices.dtype} {list(indices.shape)}")
    if (indices < 0).any():
        raise UserError(f"indices must be at least 0, not {indices.min()}")


def _gaussian_noise(images: np.ndarray, generators: Generators, std: float) -> np.ndarray:
    noise = np.stack([generator.standard_normal(images.shape[1:]) for generator in generators])
    noise *= std
    noise += images / 255
    return _to_levels(noise)


def _shot_noise(images: np.ndarray, generators: Generators, photons: float) -> np.ndarray:
    expected = images / 255 * photons
    counts = [generator.poisson(image) for image, generator in zip(expected, generators)]
    return _to_levels(np.stack(counts) / photons)


def _impulse_noise(images: np.ndarray, generators: Generators, amount: float) -> np.ndarray:
    """Single values, not whole pixels, become 0 or 255."""
    numbers = np.stack([generator.random((2, *images.shape[1:])) for generator in generators])
    salt = np.where(numbers[:, 1] <= 0.5, np.uint8(255), np.uint8(0))
    return np.where(numbers[:, 0] <= amount, salt, images)


def _defocus_blur(images: np.ndarray, generators: Generators, radius: float, alias: float
                  ) -> np.ndarray:
    """Correlation with a disk, with mirrored borders."""
    return _to_levels(correlate(images / 255, disk(radius, alias)))


def _glass_blur(images: np.ndarray, generators: Generators, sigma: float, reach: int,
                rounds: int) -> np.ndarray:
    """Blur, displace pixels, blur again."""
    height, width = images.shape[1:3]
    shape = (rounds, max(0, height - 2 * reach), max(0, width - 2 * reach), 2)
    moves = np.stack([generator.integers(-reach, reach, shape) for generator in generators])
    pixels = _to_levels(_soften(images, sigma))
    for index in range(rounds):
        pixels = displace(pixels, moves[:, index], reach)
    return _to_levels(_soften(pixels, sigma))


def _soften(images: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(images / 255, (0, sigma, sigma, 0), mode="nearest", truncate=4)


def _motion_blur(images: np.ndarray, generators: Generators, radius: int, sigma: float
                 ) -> np.ndarray:
    return smear(images, [generator.uniform(-45, 45) for generator in generators], radius, sigma)


def _zoom_blur(images: np.ndarray, generators: Generators, factors: tuple[float, ...]
               ) -> np.ndarray:
    """Mean of the image and its enlargements."""
    num, height, width, _ = images.shape
    enlarge = zoom(height, width, factors)
    pixels = (images / 255).reshape(num, height * width, 3)
    total = pixels + np.stack([enlarge @ image for image in pixels])
    # The official script works in single precision here.
    mean = (total / (len(factors) + 1)).astype(np.float32)
    return _to_levels(mean).reshape(images.shape)


def _snow(images: np.ndarray, generators: Generators, mean: float, std: float, factor: float,
          threshold: float, radius: int, sigma: float, share: float) -> np.ndarray:
    """Motion-blurred flakes, and the same rotated by 180 degrees, over a whitened image."""
    height, width = images.shape[1:3]
    enlarge = zoom(height, width, (factor,))
    layers, angles = [], []
    for generator in generators:
        layer = enlarge @ generator.normal(mean, std, height * width)
        layers.append(np.where(layer < threshold, 0, layer))
        angles.append(generator.uniform(-135, -45))
    flakes = _to_levels(np.stack(layers)).reshape(-1, height, width, 1)
    snow = smear(flakes, angles, radius, sigma) / 255
    # The official script works in single precision here.
    pixels = images.astype(np.float32) / 255
    red, green, blue = np.moveaxis(pixels, -1, 0)
    grey = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    white = np.maximum(pixels, grey[..., None] * 1.5 + 0.5)
    return _to_levels(share * pixels + (1 - share) * white + snow + snow[:, ::-1, ::-1])


def _frost(images: np.ndarray, generators: Generators, image_weight: float, frost_weight: float,
           shrink: int, folder: Path | None) -> np.ndarray:
    """Blend the image with a random crop of a random picture of frost."""
    height, width = images.shape[1:3]
    parts = []
    for generator in generators:
        number = int(generator.integers(len(PICTURES)))
        picture = frost_picture(folder, number, shrink, height, width)
        row = generator.integers(picture.shape[0] - height)
        column = generator.integers(picture.shape[1] - width)
        parts.append(picture[row:row + height, column:column + width])
    mixed = image_weight * images + frost_weight * np.stack(parts)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _fog(images: np.ndarray, generators: Generators, weight: float, decay: float) -> np.ndarray:
    height, width = images.shape[1:3]
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    numbers = np.stack([generator.uniform(-1, 1, side * side - 1) for generator in generators])
    haze = plasma(numbers, side, decay)[:, :height, :width, None]
    brightest = images.max(axis=(1, 2, 3), keepdims=True) / 255
    return _to_levels((images / 255 + weight * haze) * brightest / (brightest + weight))


def _brightness(images: np.ndarray, generators: Generators, amount: float) -> np.ndarray:
    return _brighter(amount)[images.max(axis=3, keepdims=True), images]


@lru_cache(maxsize=None)
def _brighter(amount: float) -> np.ndarray:
    """New levels uint8 [256,256], indexed by a pixel's largest channel and a channel's own level.

    V of HSV rises, hue and saturation stay; black becomes grey.
    """
    value = np.arange(256) / 255
    raised = np.clip(value + amount, 0, 1)
    levels = raised[:, None] * value / np.maximum(value, value[1])[:, None]
    np.fill_diagonal(levels, raised)
    return _to_levels(levels)


def _contrast(images: np.ndarray, generators: Generators, factor: float) -> np.ndarray:
    num, height, width, _ = images.shape
    sums = images.sum(axis=(1, 2), keepdims=True, dtype=np.int64)  # exact in any order
    means = np.tile(sums / (255 * height * width), (1, 1, width, 1)).reshape(num, 1, width * 3)
    pixels = (images / 255).reshape(num, height, width * 3)
    return _to_levels((pixels - means) * factor + means).reshape(images.shape)


def _elastic_transform(images: np.ndarray, generators: Generators, strength: float, sigma: float,
                       jitter: float) -> np.ndarray:
    """A random affine map, then smooth random displacements; lengths are fractions of the side."""
    height, width = images.shape[1:3]
    side = min(height, width)
    moves, noise = [], []
    for generator in generators:
        moves.append(generator.uniform(-jitter * side, jitter * side, (3, 2)))
        noise.append(generator.uniform(-1, 1, (2, height, width)))
    smooth = smoother(height, sigma * side) @ np.stack(noise) @ smoother(width, sigma * side).T
    shifts = strength * side * smooth
    rows, columns = affine(height, width, np.stack(moves))
    turned = sample(images / 255, rows, columns, mirrored)
    rows, columns = np.indices((height, width))
    bent = sample(turned, rows + shifts[:, 1], columns + shifts[:, 0], reflected)
    # The official script works in single precision here.
    return _to_levels(bent.astype(np.float32))


def _pixelate(images: np.ndarray, generators: Generators, share: float) -> np.ndarray:
    height, width = images.shape[1:3]
    small = max(1, int(width * share)), max(1, int(height * share))
    box = Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(image).resize(small, box)
                                .resize((width, height), box)) for image in images])


def _jpeg_compression(images: np.ndarray, generators: Generators, quality: int) -> np.ndarray:
    results = []
    for image in images:
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        results.append(np.asarray(Image.open(file, formats=("JPEG",))))
    return np.stack(results)


def _to_levels(values: np.ndarray) -> np.ndarray:
    """Convert values to grey levels uint8, clipped to [0,1] and truncated; `values` is overwritten.
    """
    np.clip(values, 0, 1, out=values)
    values *= 255
    return values.astype(np.uint8)


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
