"""Values: convert a value of a file or of the command line to the type of its key.

A value is kept as it is written until its key is known: `2024` is text for a key that takes text,
and a number for a key that takes a number. YAML's own conversions (010 to 8, 1:30 to 90, yes to
true) are not applied.

In paths, `~` and `$NAME` are expanded once; a variable that is not set stays as it is.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_apm.config.written import MAX_SHOWN, TYPE_NAMES, Scalar, Word, Written, shortened
from tta_apm.errors import UserError

# Keys, of any section, whose values are paths.
PATHS = frozenset({"DATA_DIR", "OUTPUT_DIR", "FROST_DIR", "WEIGHTS", "PLUGINS", "REPO", "IMAGES",
                   "CACHE"})
# Limits of file systems, in bytes.
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000  # of 4,096, to leave room for the names of files in a folder


@dataclass(frozen=True)
class Type:
    """The type of a key's values."""

    scalar: type | None  # bool, int, float or str; None if it is unknown
    is_list: bool = False
    or_none: bool = False
    is_path: bool = False


MAX_INT = 2**63 - 1  # of an int64
_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]*))?")
# Matches "Sequence[int]" and the like; the group is the type of the items.
_LIST = re.compile(r"(?:Sequence|list|tuple|List|Tuple)\[(\w+)(?:, \.\.\.)?\]")
_INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def type_of(key: str, default: Any, annotation: str = "") -> Type:
    """The type of a key, from its default; from its annotation if the default is None or an empty
    list."""
    is_path = key in PATHS
    if isinstance(default, (list, tuple)):
        items = {type(item) for item in default}
        scalar = items.pop() if len(items) == 1 else _annotated(annotation).scalar
        return Type(scalar if scalar in TYPE_NAMES else None, is_list=True, is_path=is_path)
    if default is not None:
        return Type(type(default), is_path=is_path)
    annotated = _annotated(annotation)
    return Type(annotated.scalar, annotated.is_list, or_none=True, is_path=is_path)


def _annotated(annotation: str) -> Type:
    """The type that an annotation such as "int | None" or "Sequence[int] | None" allows."""
    words = [word.strip() for word in annotation.strip("'").split("|")]
    types = [word for word in words if word != "None"]
    if len(types) != 1:
        return Type(None)
    items = _LIST.fullmatch(types[0])
    names = {scalar.__name__: scalar for scalar in (bool, int, float, str)}
    return Type(names.get(items[1] if items else types[0]), is_list=items is not None)


def convert(value: Written, wanted: Type, where: str) -> Any:
    """Convert `value` to the type of a key; a scalar becomes a list of one if a list is wanted.

    Args:
        where: the source and the name of the key, for errors.

    Raises:
        UserError: if the value is of another type or a number is not finite.
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
    """`value` converted to the wanted type; None if that is not possible."""
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
    # Python raises ValueError for more than 4,300 digits.
    if len(text) > 20 or abs(int(text)) > MAX_INT:
        raise UserError(f"{where}: {shortened(text)} is beyond 2**63 - 1")
    return int(text)


def _text(text: str, wanted: Type, where: str) -> str:
    if "\0" in text:
        raise UserError(f"{where} holds a null character, which no name may have")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {ascii(shortened(text))} is not UTF-8 text") from error
    return _path(text, where) if wanted.is_path else text


def _path(text: str, where: str) -> str:
    path = expanded(text)
    # A value may name several files, joined by commas.
    for name in re.split(r"[/,]", path):
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UserError(f"{where}: {shortened(name)} has {len(name.encode())} bytes: the name "
                            f"of a file or folder has {MAX_NAME_BYTES} at most")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise UserError(f"{where}: {shortened(path)} has {len(path.encode())} bytes: a path has "
                        f"{MAX_PATH_BYTES} at most")
    return path


def expanded(path: str) -> str:
    """Expand `~` and `$NAME` once in a path, or in several joined by commas."""
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
    """Return `value`; UserError if a number in it is infinite or NaN, which JSON cannot hold."""
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{where}: {item} is not a finite number")
    return value


def check_seed(key: str, seed: int) -> None:
    """Raise UserError for a seed that torch's generators do not take."""
    if not 0 <= seed <= MAX_INT:
        raise UserError(f"{key} {shortened(str(seed))}: a seed is 0 to 2**63 - 1")


def check_device(key: str, name: str) -> None:
    """Raise UserError for an invalid name of a device; device.py checks that it exists."""
    if not _DEVICE.fullmatch(name):
        raise UserError(f"{key} {shortened(name)!r}: use auto, cpu, cuda, cuda:1 or the like")


def shown(value: Written) -> str:
    """A value for an error message: as YAML reads it, unless YAML would change it."""
    if not isinstance(value, Scalar):
        return shortened(repr(_plain(value)))
    if len(value.text) > MAX_SHOWN:
        return repr(shortened(value.text))
    plain = value.plain()
    alike = plain is None or isinstance(plain, bool) or str(plain) == value.text
    return repr(plain if alike else value.text)
