"""Recipes: how each of the small backbones and contexts is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import tta_apm

if TYPE_CHECKING:  # so that `tta-apm train --help` does not import the data sets
    from tta_apm.data.dataset import Clean

PACKAGED = Path(tta_apm.__file__).parent / "backbones" / "shipped"


@dataclass(frozen=True)
class Data:
    """The training and test images. Shifts and mirroring are the only augmentation: under more, the
    corruptions would hardly lower the accuracy, and there would be nothing to adapt to."""

    train: Callable[[str], Clean]  # takes DATA_DIR
    test: Callable[[str], Clean]
    max_shift: int  # in pixels
    flip: bool  # mirror half of the images
    autocast: bool  # products in bfloat16, for long trainings
    out: Path  # folder of the weights


def _digits_train(data_dir: str) -> Clean:
    from tta_apm.data.digits import train_split
    return train_split()


def _digits_test(data_dir: str) -> Clean:
    from tta_apm.data.digits import digits
    return digits(data_dir=data_dir, frost_dir=None)


def _cifar_train(data_dir: str) -> Clean:
    from tta_apm.data.cifar_jpeg import train_part
    return train_part(data_dir)


def _cifar_test(data_dir: str) -> Clean:
    from tta_apm.data.cifar_jpeg import cifar10_jpeg
    return cifar10_jpeg(data_dir=data_dir, frost_dir=None)


DIGITS = Data(_digits_train, _digits_test, max_shift=1, flip=False, autocast=False, out=PACKAGED)
CIFAR = Data(_cifar_train, _cifar_test, max_shift=4, flip=True, autocast=True, out=Path("weights"))


@dataclass(frozen=True)
class BackboneRecipe:
    """How a network is trained."""

    module: ClassVar[str] = "tta_apm.training.backbones"  # it has make(recipe, data_dir, file)

    kind: str
    model: str  # as in a config
    data: Data
    epochs: int
    lr: float
    summary: str  # training time and test accuracy
    template_sets: tuple[str, ...] = ()  # the prompts that a CLIP is trained on
    seed: int = 0
    start: str = ""  # the weights that are trained on; "" for random ones


@dataclass(frozen=True)
class ContextRecipe:
    """How a learned context of prompts (CoOp, CoCoOp) is trained for a CLIP."""

    module: ClassVar[str] = "tta_apm.training.contexts"

    meta_net: bool  # CoCoOp's
    model: str  # as in a config
    weights: str
    data: Data
    epochs: int
    batch_size: int
    summary: str
    seed: int = 0


RECIPES: dict[str, BackboneRecipe | ContextRecipe] = {
    "digits_resnet": BackboneRecipe(
        "classifier", "timm/digits_resnet", DIGITS, epochs=40, lr=2e-3,
        summary="half a minute on two cores, 99.3 % right"),
    "digits_clip": BackboneRecipe(
        "clip", "digits_clip", DIGITS, epochs=60, lr=1e-3,
        summary="four minutes on two cores, 98.0 % right",
        template_sets=("digits", "single", "cifar")),
    "digits_mae": BackboneRecipe(
        "mae", "digits_mae", DIGITS, epochs=400, lr=1.5e-3,
        summary="four minutes on one core, 98.7 % right"),
    "digits_mae_joint": BackboneRecipe(
        "mae_joint", "digits_mae", DIGITS, epochs=60, lr=1.5e-3,
        summary="a minute and a half of one core, 98.3 % right"),
    "digits_mae_fine_tuned": BackboneRecipe(
        "mae_fine_tuned", "digits_mae", DIGITS, epochs=60, lr=1e-3,
        summary="a minute of one core, 99.7 % right", start="digits_mae.safetensors"),
    "digits_rotation": BackboneRecipe(
        "rotation", "digits_rotation", DIGITS, epochs=80, lr=3e-3,
        summary="two minutes on two cores, 98.5 % right"),
    "digits_mttt": BackboneRecipe(
        "mttt_vit", "digits_mttt", DIGITS, epochs=50, lr=3e-3,
        summary="five minutes of one core, 96.8 % right (MTTT-MLP)"),
    "digits_coop": ContextRecipe(
        False, "digits_clip", "digits_clip.safetensors", DIGITS, epochs=50, batch_size=32,
        summary="CoOp's context for digits_clip"),
    "digits_cocoop": ContextRecipe(
        True, "digits_clip", "digits_clip.safetensors", DIGITS, epochs=10, batch_size=1,
        summary="CoCoOp's context for digits_clip"),
    "cifar_resnet": BackboneRecipe(
        "classifier", "timm/cifar_resnet", CIFAR, epochs=12, lr=4e-3,
        summary="21 minutes on one core, 82.1 % right"),
    "cifar_clip": BackboneRecipe(
        "clip", "cifar_clip", CIFAR, epochs=12, lr=3e-3,
        summary="11 minutes on one core, 81.1 % right", template_sets=("cifar", "single")),
    "cifar_mae": BackboneRecipe(
        "mae", "cifar_mae", CIFAR, epochs=10, lr=1.5e-3,
        summary="54 minutes on one core, 63.4 % right"),
    "cifar_mae_joint": BackboneRecipe(
        "mae_joint", "cifar_mae", CIFAR, epochs=10, lr=1.5e-3,
        summary="cifar_mae's parts, all trained together"),
    "cifar_mae_fine_tuned": BackboneRecipe(
        "mae_fine_tuned", "cifar_mae", CIFAR, epochs=5, lr=1e-3,
        summary="cifar_mae's encoder, fine-tuned", start="weights/cifar_mae.safetensors"),
    "cifar_rotation": BackboneRecipe(
        "rotation", "cifar_rotation", CIFAR, epochs=4, lr=3e-3,
        summary="27 minutes on one core, 60.7 % right"),
    # The inner loop divides by variances of few numbers, for which bfloat16 is too coarse.
    "cifar_mttt": BackboneRecipe(
        "mttt_vit", "cifar_mttt", replace(CIFAR, autocast=False), epochs=4, lr=3e-3,
        summary="a quarter of an hour on one busy core, 50.2 % right (MTTT-MLP)"),
    "cifar_coop": ContextRecipe(
        False, "cifar_clip", "weights/cifar_clip.safetensors", CIFAR, epochs=50, batch_size=32,
        summary="CoOp's context for cifar_clip"),
    "cifar_cocoop": ContextRecipe(
        True, "cifar_clip", "weights/cifar_clip.safetensors", CIFAR, epochs=10, batch_size=1,
        summary="CoCoOp's context for cifar_clip"),
}
