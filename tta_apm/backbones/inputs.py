"""inputs: the size, mean and std that a network's images want, and who says so.

They belong to weights, not to architectures. Those of a library come with its tag; for a file they
are read from the config beside it, taken over where all weights that the library has of the
architecture agree, or asked for. Nothing is guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tta_apm.errors import UserError


class Inputs(NamedTuple):
    """What a config says of a backbone's images; 0 and () where it says nothing.

    Attributes:
        image_size: side in pixels.
        mean, std: of the three channels, in [0,1].
    """

    image_size: int = 0
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    @classmethod
    def of(cls, section: Mapping[str, Any], name: str) -> Inputs:
        """Those that a section of a config gives.

        Raises:
            UserError: for a mean or std that is not three numbers of that kind.
        """
        inputs = cls(section.get("IMAGE_SIZE", 0), section.get("MEAN", ()), section.get("STD", ()))
        if inputs.image_size < 0:
            raise UserError(f"{name}.IMAGE_SIZE {inputs.image_size}: give the side of the images "
                            "in pixels")
        for key, values in (("MEAN", inputs.mean), ("STD", inputs.std)):
            if len(values) and not _is_three(values, positive=key == "STD"):
                raise UserError(f"{name}.{key} {list(values)}: give three numbers, of the channels "
                                "of images in [0,1]")
        return inputs


class Told(NamedTuple):
    """Inputs that are known, whole."""

    image_size: int | None  # None: any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    by: str  # who says so, for the record


def settle(given: Inputs, sources: Iterable[tuple[str, Mapping[str, Any]]], *, section: str,
           model: str, advice: str, sized: bool = True) -> Told:
    """The size, mean and std of a backbone's images.

    Args:
        given: what the config says; it comes first.
        sources: who else says something, and what: image_size, mean or std; the best first.
        section: of the config, "" if it has no keys for them.
        advice: what else a user can do, if something stays unknown.
        sized: whether the size is asked for; else any will do.

    Raises:
        UserError: names what nobody tells.
    """
    known: dict[str, Any] = {key: value for key, value in given._asdict().items() if value}
    by = {key: f"{section}.{key.upper()}" for key in known}
    for who, content in sources:
        for key in given._fields:
            if key in content and key not in known:
                known[key], by[key] = content[key], who
    unknown = [key for key in given._fields if key not in known and (sized or key != "image_size")]
    if unknown:
        keys = ", ".join(f"{section}.{key.upper()}" for key in unknown)
        todo = f"set {keys}, or {advice}" if section else advice
        raise UserError(f"nothing tells with what {' and '.join(unknown)} of images {model} was "
                        f"trained: {todo}")
    used = dict.fromkeys(by[key] for key in ("image_size", "mean", "std") if key in by)
    return Told(known.get("image_size"), tuple(known["mean"]), tuple(known["std"]),
                " and ".join(used))


def agreed(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of a library's weights of an architecture say alike."""
    return {key: value for key, value in (contents[0] if contents else {}).items()
            if all(other.get(key) == value for other in contents)}


def beside(file: Path, name: str) -> dict[str, Any]:
    """The JSON file `name` in the folder of `file`; {} if there is none.

    Raises:
        UserError: if it is no object of JSON.
    """
    path = file.with_name(name)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}, beside the weights, cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}, beside the weights, holds no object of JSON")
    return content


def pixels(content: Any) -> dict[str, Any]:
    """Mean, std and size in a dict as timm and open_clip write it, as far as they are sound."""
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


def text(image_size: int | None, mean: Sequence[float], std: Sequence[float], notes: str) -> str:
    """Inputs in words, for the record."""
    def numbers(values: Sequence[float]) -> str:
        return " ".join(f"{value:.4g}" for value in values)
    size = f"{image_size} px" if image_size else "any size"
    return f"{size}, mean {numbers(mean)}, std {numbers(std)}{notes and f', {notes}'}"


def _is_three(values: Any, *, positive: bool) -> bool:
    """Whether `values` are three finite numbers, above 0 if `positive`."""
    return isinstance(values, (list, tuple)) and len(values) == 3 and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        and (value > 0 or not positive) for value in values)
