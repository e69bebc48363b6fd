"""All methods side by side: images per second and peak memory, on random weights.

    python benchmarks/methods.py --clip ViT-B-16 ViT-L-14 --classes 10 1000 --images 64

CLIPs, classifiers, a masked autoencoder and a network with a rotation branch of full size, each
method with its paper's hyper-parameters unless others are given. Each method runs in a separate
process, so that its peak memory is its own. On a CPU use few images and steps:

    python benchmarks/methods.py --clip ViT-B-16 --classes 10 --images 2 \\
        --methods source norm tent clip_zero_shot tpt "apm PRESET slim STEPS 2" \\
        "ttt_mae STEPS 1 MASKS 8"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import common
from tta_apm import config
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.clip_prompts import Context
from tta_apm.cost.methods import Costs
from tta_apm.data.imagenet_classes import class_names

# The masked autoencoder that goes with a CLIP in size.
AUTOENCODERS = {"ViT-B-16": "mae_vit_base_patch16", "ViT-L-14": "mae_vit_large_patch16"}
METHODS = ("source", "norm", "tent", "rmt", "memo NUM_VIEWS 64 CROP resize", "ttt NUM_VIEWS 64",
           "ttt_online NUM_VIEWS 64", "ttt_mae", "clip_zero_shot", "coop", "cocoop", "tpt",
           "apm PRESET slim", "apm PRESET paper")
BASE = "METHODS: [source]\nROTATION: {MODEL: resnet18_gn}\nBATCH_SIZE: 64\n"


def main() -> None:
    options = _options()
    if options.one:
        print(json.dumps(measure_one(options)))
        return
    device = torch.device(options.device)
    for clip in options.clip:
        for classes in options.classes:
            rows = [run_alone(options, method, clip, classes) for method in options.methods]
            lines = common.table(
                ["method", "images/s", "peak MB", "GFLOPs/image", "adapted M", "backbone"], rows)
            lines += ["", "Products in bfloat16 (APM) and float16 (TPT) on a GPU, else float32. "
                      "Peak memory is the GPU's allocated; of the whole process on a CPU."]
            common.publish(f"Methods: {clip}, {classes} classes, {options.images} images at a time",
                           lines, device, options.append)


def run_alone(options: argparse.Namespace, method: str, clip: str, classes: int) -> list[str]:
    """A row of the table, measured in a process of its own."""
    words = [sys.executable, __file__, "--one", method, "--clip", clip, "--classes", str(classes),
             "--images", str(options.images), "--classifier", options.classifier, "--device",
             options.device]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["?"])[-1]
        print(f"{method}: {why}", file=sys.stderr)
        return [method, "failed", "", "", "", why[:60]]
    cost = json.loads(done.stdout.splitlines()[-1])
    return [method, f"{1 / cost['seconds']:.3g}", f"{cost['peak_memory_mb']:.0f}",
            f"{(cost['forward'] + cost['backward']) / 1e9:.4g}",
            f"{cost['adapted_parameters'] / 1e6:.3g}", cost["backbone"]]


def measure_one(options: argparse.Namespace) -> dict[str, object]:
    """The cost of one method, as a process of its own finds it."""
    clip, = options.clip
    classes, = options.classes
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "base.yaml"
        file.write_text(BASE, encoding="utf-8")
        name = options.one.split()[0]
        contexts = Path(folder) / "context.safetensors"
        learned = [f"{name.upper()}.WEIGHTS", str(contexts)] if name in ("coop", "cocoop") else []
        cfg = config.load(file, [
            "METHODS", json.dumps([options.one]), "CLIP.MODEL", clip, "CLASSIFIER.MODEL",
            options.classifier, "MAE.MODEL", AUTOENCODERS.get(clip, "mae_vit_base_patch16"),
            *learned])
        costs = Costs(cfg, class_names()[:classes], torch.device(options.device))
        if learned:
            text = costs.backbone("clip")
            assert isinstance(text, ClipBackbone)
            width = text.model.token_embedding.weight.shape[1]
            feature_dim = text.text_features.shape[1] if name == "cocoop" else None
            save_file(Context(torch.randn(4, width) * 0.02, feature_dim).state_dict(), contexts)
        return vars(costs.measure(config.rows(cfg)[0], options.images))


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--clip", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--classifier", default="torchvision/resnet50")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--images", type=int, default=64 if torch.cuda.is_available() else 2)
    parser.add_argument("--methods", nargs="+", default=METHODS,
                        help="each with KEY VALUE pairs of its own in the same word")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
