"""Precision: APM in each mode against float64, on 1,000 corrupted digits with a trained teacher.

    python benchmarks/precision.py                  (the small student of cfgs/digits_c; a CPU)
    python benchmarks/precision.py --student full --preset slim --device cuda

A mode should have equal predictions on 99.9 % of the images, and a cosine of the features within
1e-3 of 1.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import common
from tta_apm.apm.method import PRESETS, Apm
from tta_apm.backbones.build import build
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.clip_templates import templates
from tta_apm.bench.evaluate import to_device
from tta_apm.data.dataset import Domain
from tta_apm.data.digits import digits_c

CORRUPTIONS = ("gaussian_noise", "fog", "contrast", "pixelate")
SMALL = dict(image_size=32, patch=8, code=64, hidden=(1024, 256))


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    data = digits_c(data_dir="", frost_dir=None)
    each = np.arange(options.images // len(CORRUPTIONS))
    images = torch.cat([to_device(data.images(Domain(data.name, name, 5), each), device)
                        for name in CORRUPTIONS])
    clip = build("clip", "digits_clip", "digits_clip.safetensors", class_names=data.class_names,
                 templates=templates(data.template_set), device=device)
    assert isinstance(clip, ClipBackbone)
    exact = run(options, copy.deepcopy(clip).double(), images.double(), "float32")
    rows = [[precision, *compared(run(options, clip, images, precision), exact)]
            for precision in ("float32", "bfloat16")]
    lines = common.table(["products in", "predictions equal", "1 - least cosine",
                          "1 - mean cosine"], rows)
    common.publish(f"Precision of APM {options.preset}, {options.student} student, "
                   f"{len(images)} images, against float64", lines, device, options.append)


def run(options: argparse.Namespace, clip: ClipBackbone, images: Tensor, precision: str
        ) -> tuple[Tensor, Tensor]:
    """The students' features and their predictions."""
    size: dict[str, Any] = SMALL if options.student == "small" else {}
    method = Apm(clip, preset=options.preset, precision=precision, **size)
    with common.classified_by(clip) as features:
        predictions = [method(batch).argmax(-1) for batch in images.split(options.batch)]
    return torch.cat(features).double(), torch.cat(predictions)


def compared(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> list[str]:
    equal = (found[1] == exact[1]).double().mean().item()
    cosines = F.cosine_similarity(found[0], exact[0])
    return [f"{equal:.2%}", f"{1 - cosines.min().item():.1e}", f"{1 - cosines.mean().item():.1e}"]


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--student", choices=("small", "full"), default="small")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
