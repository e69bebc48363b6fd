"""The constants of the 15 corruptions at severities 1 to 5, for CIFAR-C and for ImageNet-C.

They are those of Hendrycks & Dietterich (2019), hendrycks/robustness at 8190fe3: make_cifar_c.py
and make_imagenet_c.py. Each row holds the arguments of the corruption's function in functions.py
for one severity, severity 1 first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Rows = tuple[tuple[Any, ...], ...]

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
SIDES = {"cifar": 32, "imagenet": 224}  # side in pixels of the images that the constants are for


def _rows(*values: float) -> Rows:
    return tuple((value,) for value in values)


def _zooms(*ranges: tuple[float, float]) -> Rows:
    """Zoom factors from 1 to `stop`. np.arange's rounding determines whether `stop` is included, so
    this is the official call."""
    return tuple((tuple(np.arange(1, stop, step).tolist()),) for stop, step in ranges)


def _elastic(unit: float, *rows: tuple[float, float, float]) -> Rows:
    """Constants as fractions of the image's side. `unit` corrects a wrong side in a script."""
    return tuple(tuple(unit * value for value in row) for row in rows)


CONSTANTS: dict[str, dict[str, Rows]] = {
    "cifar": {
        "gaussian_noise": _rows(.04, .06, .08, .09, .10),  # standard deviation
        "shot_noise": _rows(500, 250, 100, 75, 50),  # photons at full brightness
        "impulse_noise": _rows(.01, .02, .03, .05, .07),  # fraction of the values
        "defocus_blur": ((.3, .4), (.4, .5), (.5, .6), (1, .2), (1.5, .1)),  # radius, alias blur
        # sigma, largest displacement, rounds
        "glass_blur": ((.05, 1, 1), (.25, 1, 1), (.4, 1, 1), (.25, 1, 2), (.4, 1, 2)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
        "zoom_blur": _zooms((1.06, .01), (1.11, .01), (1.16, .01), (1.21, .01), (1.26, .01)),
        # mean, standard deviation, zoom, threshold, motion radius, motion sigma, weight of image
        "snow": ((.1, .2, 1, .6, 8, 3, .95), (.1, .2, 1, .5, 10, 4, .9),
                 (.15, .3, 1.75, .55, 10, 4, .9), (.25, .3, 2.25, .6, 12, 6, .85),
                 (.3, .3, 1.25, .65, 14, 12, .8)),
        # weight of image, weight of frost, factor by which the frost picture is shrunk
        "frost": ((1, .2, 5), (1, .3, 5), (.9, .4, 5), (.85, .4, 5), (.75, .45, 5)),
        "fog": ((.2, 3), (.5, 3), (.75, 2.5), (1, 2), (1.5, 1.75)),  # weight, decay
        "brightness": _rows(.05, .1, .15, .2, .3),  # added to the largest channel
        "contrast": _rows(.75, .5, .4, .3, .15),  # factor
        # strength, sigma, jitter of the affine map
        "elastic_transform": _elastic(1, (0, 0, .08), (.05, .2, .07), (.08, .06, .06),
                                      (.1, .04, .05), (.1, .03, .03)),
        "pixelate": _rows(.95, .9, .85, .75, .65),  # fraction of the side
        "jpeg_compression": _rows(80, 65, 58, 50, 40),  # quality
    },
    "imagenet": {
        "gaussian_noise": _rows(.08, .12, .18, .26, .38),
        "shot_noise": _rows(60, 25, 12, 5, 3),
        "impulse_noise": _rows(.03, .06, .09, .17, .27),
        "defocus_blur": ((3, .1), (4, .5), (6, .5), (8, .5), (10, .5)),
        "glass_blur": ((.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": _zooms((1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03)),
        "snow": ((.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7),
                 (.55, .3, 4, .9, 12, 8, .7), (.55, .3, 4.5, .85, 12, 8, .65),
                 (.55, .3, 2.5, .85, 12, 12, .55)),
        "frost": ((1, .4, 1), (.8, .6, 1), (.7, .7, 1), (.65, .7, 1), (.6, .75, 1)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": _rows(.1, .2, .3, .4, .5),
        "contrast": _rows(.4, .3, .2, .1, .05),
        # The official script multiplies by 244, though its images have side 224.
        "elastic_transform": _elastic(244 / 224, (2, .7, .1), (2, .08, .2), (.05, .01, .02),
                                      (.07, .01, .02), (.12, .01, .02)),
        "pixelate": _rows(.6, .5, .4, .3, .25),
        "jpeg_compression": _rows(25, 18, 15, 10, 7),
    },
}
