"""Prompt templates: the sets of texts into which class names are inserted for CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tta_apm.errors import choose

if TYPE_CHECKING:  # the check of a config imports this file, without torch
    from torch import Tensor

IMAGENET = "imagenet"
SAME_COSINE = 1 - 1e-6  # of two features that differ only by rounding

# Names that TEMPLATES takes and records hold; any data set may use any. What only one data set
# uses is its own attribute `templates`.
_SETS: dict[str, tuple[str, ...]] = {
    # CLIP (Radford et al. 2021), Section 3.1.4: the default without an ensemble.
    "single": ("a photo of a {}.",),
    # openai/CLIP, data/prompts.md, CIFAR10.
    "cifar": (
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a black and white photo of a {}.",
        "a low contrast photo of a {}.",
        "a high contrast photo of a {}.",
        "a bad photo of a {}.",
        "a good photo of a {}.",
        "a photo of a small {}.",
        "a photo of a big {}.",
        "a photo of the {}.",
        "a blurry photo of the {}.",
        "a black and white photo of the {}.",
        "a low contrast photo of the {}.",
        "a high contrast photo of the {}.",
        "a bad photo of the {}.",
        "a good photo of the {}.",
        "a photo of the small {}.",
        "a photo of the big {}.",
    ),
    # CoOp (Zhou et al. 2022): the hand-written prompt of each fine-grained data set.
    "dtd": ("{} texture.",),
    "eurosat": ("a centered satellite photo of {}.",),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.",),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "food101": ("a photo of {}, a type of food.",),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "ucf101": ("a photo of a person doing {}.",),
    # The first is openai/CLIP's for MNIST; the others were written for this package.
    "digits": (
        'a photo of the number: "{}".',
        "a photo of the digit {}.",
        "a photo of a handwritten {}.",
        "a scan of the handwritten digit {}.",
        "a low resolution picture of the number {}.",
        "the number {} in white on black.",
        "the digit {}, written by hand.",
    ),
}


def template_sets() -> tuple[str, ...]:
    """Names of all template sets."""
    return (*_SETS, IMAGENET)


def templates(name: str) -> tuple[str, ...]:
    """The templates of a set; each has one `{}` for the class name.

    Raises:
        UserError: if there is no such set.
    """
    if name == IMAGENET:
        return _imagenet()
    choose("", "template set", name, template_sets())
    return _SETS[name]


def indistinguishable(class_names: Sequence[str], text_features: Tensor) -> str:
    """A warning about classes with equal text features [K,D]; "" if there are none.

    Names can be equal (ImageNet has two such pairs), or differ only after the tokenizer's limit.
    """
    cosines = (text_features @ text_features.T).triu(diagonal=1)
    pairs = (cosines > SAME_COSINE).nonzero().tolist()
    if not pairs:
        return ""
    first, second = pairs[0]
    a, b = (class_names[index][:60] for index in (first, second))
    return (f"{len(pairs)} pairs of classes cannot be told apart by their prompts, such as {first} "
            f"{a!r} and {second} {b!r}: the names are equal to the tokenizer, or cut off before "
            "they differ")


def _imagenet() -> tuple[str, ...]:
    """The 80 templates of openai/CLIP, from open_clip (imported here: it takes seconds)."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
