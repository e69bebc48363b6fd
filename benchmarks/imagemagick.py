"""Differences of our motion blur and snow from those of ImageMagick, as a Markdown table.

    python benchmarks/imagemagick.py --dataset cifar10_jpeg --data-dir DIR --constants cifar
    python benchmarks/imagemagick.py --dataset folder --data-dir DIR/val --constants imagenet

The official scripts (hendrycks/robustness) use ImageMagick through Wand. Both sides get the same
images and the same random numbers. Needs `pip install wand` and ImageMagick 6's libMagickWand; if
one is missing, it says so and ends.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from PIL import Image

from tta_apm.data.corruptions import filters, functions
from tta_apm.data.corruptions.constants import SEVERITIES
from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.data.load import load_dataset

Smear = Callable[[np.ndarray, list[float], int, float], np.ndarray]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--constants", choices=["cifar", "imagenet"], default="cifar")
    return parser.parse_args()


def real_smear() -> tuple[Smear, str]:
    """filters.smear computed by ImageMagick, and its version; ImportError if it is missing."""
    from ctypes import c_double, c_void_p

    from wand.api import library
    from wand.image import Image as WandImage
    from wand.version import MAGICK_VERSION

    library.MagickMotionBlurImage.argtypes = (c_void_p, c_double, c_double, c_double)

    def smear(images: np.ndarray, angles: list[float], radius: int, sigma: float) -> np.ndarray:
        results = []
        for image, angle in zip(images, angles):
            content = io.BytesIO()
            Image.fromarray(image.squeeze()).save(content, "PNG")
            with WandImage(blob=content.getvalue()) as wand:
                library.MagickMotionBlurImage(wand.wand, radius, sigma, angle)
                picture = Image.open(io.BytesIO(wand.make_blob("PNG")))
            mode = "RGB" if image.shape[-1] == 3 else "L"
            results.append(np.asarray(picture.convert(mode)).reshape(image.shape))
        return np.stack(results)

    return smear, MAGICK_VERSION


def main() -> None:
    args = arguments()
    try:
        smear, version = real_smear()
    except ImportError as error:
        print(f"There is no ImageMagick to compare with: {' '.join(str(error).split())}")
        return
    dataset = load_dataset(args.dataset, data_dir=args.data_dir, frost_dir="")
    indices = np.arange(args.images)
    images = dataset.images(Domain(args.dataset, CLEAN, 0), indices)
    height, width = images.shape[1:3]

    def corrupt(by: Smear, corruption: str, severity: int) -> np.ndarray:
        with patch.object(functions, "smear", by):
            return functions.corrupt(images, corruption, severity, indices=indices,
                                     constants=args.constants).astype(int)

    print(f"{args.images} images of {args.dataset}, {height}×{width}, {args.constants} constants; "
          f"{version}\n")
    print("| | severity | values that differ | by at most | mean of ours less theirs |")
    print("| --- | --- | ---: | ---: | ---: |")
    for corruption in ("motion_blur", "snow"):
        for severity in SEVERITIES:
            ours, theirs = (corrupt(by, corruption, severity) for by in (filters.smear, smear))
            away = ours - theirs
            print(f"| {corruption} | {severity} | {(away != 0).mean():.5f} | {abs(away).max()} | "
                  f"{away.mean():+.5f} |")


if __name__ == "__main__":
    main()
