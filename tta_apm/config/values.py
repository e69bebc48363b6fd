"""Values: what a config's file or command line says, in the type that its key takes.

A value is kept as it is written until the key it is for is known: `2024` is a name for a key that
takes text and a number for one that takes a number. YAML's own readings of plain text (010 is 8,
1:30 is 90, yes is true) do not come between.

A path's `~` and `$NAME` are replaced once; a variable that is not set stays as it is.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_apm.config.written import LONGEST_SHOWN, TYPE_NAMES, Scalar, Word, Written, shortened
from tta_apm.errors import UserError

# Keys, in whatever section, whose text is a path.
PATHS = frozenset({"DATA_DIR", "OUTPUT_DIR", "FROST_DIR", "WEIGHTS", "PLUGINS", "REPO", "IMAGES",
                   "CACHE"})
# What file systems take for one name.
LONGEST_NAME = 255
LONGEST_PATH = 4000  # of 4,096, so that names of files still fit


@dataclass(frozen=True)
class Type:
    """What a key takes."""

    scalar: type | None  # bool, int, float or str; None if it is not known
    is_list: bool = False
    or_none: bool = False
    is_path: bool = False


LARGEST = 2**63 - 1  # of whole numbers in tensors, and of seeds
_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]*))?")
# Of "Sequence[int]" and the like, the part in brackets.
_LIST = re.compile(r"(?:Sequence|list|tuple|List|Tuple)\[(\w+)(?:, \.\.\.)?\]")
_INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def type_of(key: str, default: Any, annotation: str = "") -> Type:
    """The type of a key, of its default and, where that says too little, its annotation."""
    is_path = key in PATHS
    if isinstance(default, (list, tuple)):
        items = {type(item) for item in default}
        scalar = items.pop() if len(items) == 1 else _annotated(annotation).scalar
        return Type(scalar if scalar in TYPE_NAMES else None, is_list=True, is_path=is_path)
    if default is not None:
        return Type(type(default), is_path=is_path)
    told = _annotated(annotation)
    return Type(told.scalar, told.is_list, or_none=True, is_path=is_path)


def _annotated(annotation: str) -> Type:
    """What "int | None" or "Sequence[int] | None" allows."""
    words = [word.strip() for word in annotation.strip("'").split("|")]
    types = [word for word in words if word != "None"]
    if len(types) != 1:
        return Type(None)
    items = _LIST.fullmatch(types[0])
    names = {scalar.__name__: scalar for scalar in (bool, int, float, str)}
    return Type(names.get(items[1] if items else types[0]), is_list=items is not None)


def convert(value: Written, wanted: Type, where: str) -> Any:
    """`value` in the type that `where`, the name of a key, takes; a scalar serves as a list of one.

    Raises:
        UserError: for a value of another type, or a number that is not finite.
    """
    if wanted.or_none and isinstance(value, Scalar) and value.is_null:
        return None
    if wanted.is_list:
        return _list(value, wanted, where)
    if wanted.scalar is None:
        return check_finite(_plain(value), where)
    if isinstance(value, Scalar):
        converted = _scalar(value, wanted, where)
        if converted is not None:
            return converted
    raise UserError(f"{where} takes {TYPE_NAMES[wanted.scalar]}, not {shown(value)}")


def _list(value: Written, wanted: Type, where: str) -> list[Any]:
    item = Type(wanted.scalar, is_path=wanted.is_path)
    if isinstance(value, Mapping):
        raise UserError(f"{where} takes a list, not {shown(value)}")
    entries: Sequence[Written]
    if isinstance(value, Word):
        try:
            in_brackets = value.entries()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        entries = [value] if in_brackets is None else in_brackets
    elif isinstance(value, Scalar):
        entries = [] if value.is_null else [value]
    else:
        entries = value
    return [convert(entry, item, where) for entry in entries]


def _scalar(value: Scalar, wanted: Type, where: str) -> Any:
    """`value` in the type, None if it is of another."""
    if wanted.scalar is str:
        if value.is_null and not isinstance(value, Word):
            return None
        return _text(value.text, wanted, where)
    if value.quoted:
        return None
    if wanted.scalar is bool:
        return _BOOLS.get(value.text.lower())
    if wanted.scalar is int:
        return _whole(value.text, where) if _INT.fullmatch(value.text) else None
    if value.text.lower().strip("+-.") in ("inf", "infinity", "nan"):
        raise UserError(f"{where}: {value.text} is not a finite number")
    return check_finite(float(value.text), where) if _FLOAT.fullmatch(value.text) else None


def _whole(text: str, where: str) -> int:
    # Python itself reads no more than 4,300 digits.
    if len(text) > 20 or abs(int(text)) > LARGEST:
        raise UserError(f"{where}: {shortened(text)} is beyond 2**63 - 1")
    return int(text)


def _text(text: str, wanted: Type, where: str) -> str:
    if "\0" in text:
        raise UserError(f"{where} holds a character of code 0, which no name may have")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {ascii(shortened(text))} is not UTF-8 text") from error
    return _path(text, where) if wanted.is_path else text


def _path(text: str, where: str) -> str:
    path = expanded(text)
    # One key may hold two files, joined by a comma.
    for name in re.split(r"[/,]", path):
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"{where}: {shortened(name)} has {len(name.encode())} bytes: the name "
                            f"of a file or folder has {LONGEST_NAME} at most")
    if len(path.encode()) > LONGEST_PATH:
        raise UserError(f"{where}: {shortened(path)} has {len(path.encode())} bytes: a path has "
                        f"{LONGEST_PATH} at most")
    return path


def expanded(path: str) -> str:
    """A path, or several joined by commas, with `~` and `$NAME` replaced, once."""
    return ",".join(map(_expanded, path.split(",")))


def _expanded(path: str) -> str:
    if not path.startswith("~"):
        return os.path.expandvars(path)
    home, slash, rest = path.partition("/")
    return os.path.expanduser(home) + slash + os.path.expandvars(rest)


def _plain(value: Written) -> Any:
    if isinstance(value, Word):
        entries = value.entries()
        return value.plain() if entries is None else [_plain(entry) for entry in entries]
    if isinstance(value, Scalar):
        return value.plain()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value]


def check_finite(value: Any, where: str) -> Any:
    """`value`, if no number in it is infinite or NaN: a record could not hold it."""
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{where}: {item} is not a finite number")
    return value


def check_seed(key: str, seed: int) -> None:
    """Raise UserError for a seed that the libraries' generators do not take."""
    if not 0 <= seed <= LARGEST:
        raise UserError(f"{key} {shortened(str(seed))}: a seed is 0 to 2**63 - 1")


def check_device(key: str, name: str) -> None:
    """Raise UserError for what is no name of a device; whether it is here is told later."""
    if not _DEVICE.fullmatch(name):
        raise UserError(f"{key} {shortened(name)!r}: use auto, cpu, cuda, cuda:1 or the like")


def shown(value: Written) -> str:
    """A value as errors show it: as YAML reads it, if that is how it is written, too."""
    if not isinstance(value, Scalar):
        return shortened(repr(_plain(value)))
    if len(value.text) > LONGEST_SHOWN:
        return repr(shortened(value.text))
    plain = value.plain()
    alike = plain is None or isinstance(plain, bool) or str(plain) == value.text
    return repr(plain if alike else value.text)
