"""inputs: the size, mean and std of a network's images, and the source that states them.

They depend on the weights, not on the architecture. A library states them for each of its
pretrained tags. For a file they come from the user, from the config beside it, or from the library
if all of its weights of that architecture agree. Nothing is guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tta_apm.errors import UserError


class InputKeys(NamedTuple):
    """IMAGE_SIZE, MEAN and STD of a config's section; 0 and () if they are not set.

    Attributes:
        image_size: side in pixels.
        mean, std: of the three channels, in [0,1].
    """

    image_size: int = 0
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    @classmethod
    def of(cls, section: Mapping[str, Any], name: str) -> InputKeys:
        """The keys of a section of a config.

        Raises:
            UserError: for a negative size, or a mean or std that is not three valid numbers.
        """
        keys = cls(section.get("IMAGE_SIZE", 0), section.get("MEAN", ()), section.get("STD", ()))
        if keys.image_size < 0:
            raise UserError(f"{name}.IMAGE_SIZE {keys.image_size}: give the side of the images "
                            "in pixels")
        for key, values in (("MEAN", keys.mean), ("STD", keys.std)):
            if len(values) and not _is_three(values, positive=key == "STD"):
                raise UserError(f"{name}.{key} {list(values)}: give three numbers, one per channel "
                                "of images in [0,1]")
        return keys


class InputSpec(NamedTuple):
    """The images that a network takes."""

    image_size: int | None  # None: any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str  # the source that states them, for the record


def resolve(keys: InputKeys, sources: Iterable[tuple[str, Mapping[str, Any]]], *, section: str,
            model: str, advice: str, needs_size: bool = True) -> InputSpec:
    """The size, mean and std of a backbone's images.

    Args:
        keys: values set in the config; they take precedence over all sources.
        sources: (name, values) of other sources of image_size, mean or std, surest first.
        section: name of the config's section; "" if it has no keys for them.
        model: name of the network, for the error message.
        advice: what else a user can do if a value stays unknown, for the error message.
        needs_size: whether the size must be known.

    Raises:
        UserError: for a value that no source states.
    """
    known: dict[str, Any] = {key: value for key, value in keys._asdict().items() if value}
    stated_by = {key: f"{section}.{key.upper()}" for key in known}
    for source, content in sources:
        for key in keys._fields:
            if key in content and key not in known:
                known[key], stated_by[key] = content[key], source
    unknown = [key for key in keys._fields
               if key not in known and (needs_size or key != "image_size")]
    if unknown:
        names = ", ".join(f"{section}.{key.upper()}" for key in unknown)
        todo = f"set {names}, or {advice}" if section else advice
        raise UserError(f"no source states the {' and '.join(unknown)} of the images that {model} "
                        f"was trained with: {todo}")
    used = dict.fromkeys(stated_by[key] for key in ("image_size", "mean", "std")
                         if key in stated_by)
    return InputSpec(known.get("image_size"), tuple(known["mean"]), tuple(known["std"]),
                     " and ".join(used))


def common(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that are equal in all of `contents`."""
    return {key: value for key, value in (contents[0] if contents else {}).items()
            if all(other.get(key) == value for other in contents)}


def read_beside(file: Path, name: str) -> dict[str, Any]:
    """The JSON file `name` in the folder of `file`; {} if there is none.

    Raises:
        UserError: if it cannot be read or is not a JSON object.
    """
    path = file.with_name(name)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}, beside the weights, cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}, beside the weights, is not a JSON object")
    return content


def parse(content: Any) -> dict[str, Any]:
    """The valid mean, std and image_size in a dict of timm's or open_clip's format."""
    found: dict[str, Any] = {}
    if not isinstance(content, Mapping):
        return found
    for key in ("mean", "std"):
        if _is_three(content.get(key), positive=key == "std"):
            found[key] = tuple(content[key])
    size = content.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 3 and size[1] == size[2] and (
            type(size[2]) is int and size[2] > 0):
        found["image_size"] = size[2]
    return found


def describe(image_size: int | None, mean: Sequence[float], std: Sequence[float],
             notes: str) -> str:
    """Size, mean and std in words, for the record."""
    def numbers(values: Sequence[float]) -> str:
        return " ".join(f"{value:.4g}" for value in values)
    size = f"{image_size} px" if image_size else "any size"
    return f"{size}, mean {numbers(mean)}, std {numbers(std)}{notes and f', {notes}'}"


def _is_three(values: Any, *, positive: bool) -> bool:
    """Whether `values` are three finite numbers; if `positive`, all above 0."""
    return isinstance(values, (list, tuple)) and len(values) == 3 and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        and (value > 0 or not positive) for value in values)
