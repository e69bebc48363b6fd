"""`tta-apm train`: train a small backbone, or a learned context of a small CLIP."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from pathlib import Path

from tta_apm.cli import OK
from tta_apm.commands import options as shared
from tta_apm.errors import at_least, choose


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    from tta_apm.training.recipes import RECIPES

    width = max(map(len, RECIPES))
    names = "\n".join(["names:", *(f"  {name:<{width}} {recipe.summary}"
                                   for name, recipe in RECIPES.items())])
    parser = shared.make_parser(
        "train", "Train a small backbone, or a context of CoOp or CoCoOp, and print its test "
        "accuracy. The same machine with the same number of threads writes the same file again. A "
        "context fits one CLIP only: train it again after that CLIP was trained again.", names)
    parser.add_argument("name", metavar="NAME", help="a name from the list below")
    parser.add_argument("--data-dir", default="data", metavar="FOLDER",
                        help="the folder of CIFAR-10 (default: data)")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the file to write (default: the package's own for digits, "
                        "weights/NAME.safetensors for CIFAR-10)")
    parser.add_argument("--epochs", type=int, metavar="N",
                        help="passes over the training images (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of the initial weights and the order of images (default: 0)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Train, write the weights and print their test accuracy."""
    from tta_apm.training.recipes import RECIPES

    choose("train", "NAME", options.name, RECIPES)
    at_least(0, "train", seed=options.seed)
    recipe = replace(RECIPES[options.name], seed=options.seed)
    if options.epochs is not None:
        at_least(1, "train", epochs=options.epochs)
        recipe = replace(recipe, epochs=options.epochs)
    file = options.out or recipe.data.out / f"{options.name}.safetensors"
    importlib.import_module(recipe.module).make(recipe, options.data_dir, file)
    return OK
