"""Pickle objects: what pickles.py makes of the contents of a pickle. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# Makes an object from a call's arguments; returns NotImplemented to leave an Inert.
Maker = Callable[..., Any]
KEYS = (str, int, float, bool, bytes, type(None))  # hashing other keys could take for ever


class Malformed(Exception):
    """The bytes are not a valid pickle, or would take too long to read."""


class Named(NamedTuple):
    """The name of a class or function, which is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """An object that was not constructed: its class, arguments and state."""

    kind: Any
    args: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    rest: list[Any] = field(default_factory=list)

    @property
    def type_name(self) -> str:
        return str(self.kind) if isinstance(self.kind, Named) else "an object"


@dataclass(eq=False)
class PickledArray:
    """A numpy dtype or array under construction."""

    text: str = ""
    args: Any = ()
    state: Any = None

    def numbers(self) -> np.ndarray | None:
        """The array, in the machine's byte order; None if it does not hold numbers."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, fortran, content = self.state
        if isinstance(content, str):  # written by Python 2
            content = content.encode("latin-1")
        if not isinstance(dtype, PickledArray) or not isinstance(dtype.state, tuple) or not \
                isinstance(content, bytes) or not re.fullmatch("[fiub][1248]", dtype.text):
            return None
        try:
            numbers = np.frombuffer(content, np.dtype(f"{dtype.state[1]}{dtype.text}"))
            numbers = numbers.reshape(shape, order="F" if fortran else "C")
            return numbers.astype(numbers.dtype.newbyteorder("="))
        except (TypeError, ValueError, IndexError):
            return None


def of_kind(value: Any, kind: type) -> Any:
    """Return `value`; Malformed if it is not an instance of `kind`."""
    if not isinstance(value, kind):
        raise Malformed(f"a pickle that takes a {type(value).__name__} for a {kind.__name__}")
    return value


# Functions that make plain data and check their arguments.

def _dict(*args: Any) -> Any:
    pairs = args[-1] if args and isinstance(args[-1], list) else []
    return {key: value for key, value in pairs if isinstance(key, KEYS)}


def _list(items: Any = (), *_: Any) -> Any:
    return list(items) if isinstance(items, (list, tuple)) else NotImplemented


def tuple_of(items: Any = (), *_: Any) -> Any:
    return tuple(items) if isinstance(items, (list, tuple)) else NotImplemented


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> Any:
    return text.encode("latin-1") if isinstance(text, str) and encoding in (
        "latin1", "latin-1", "iso-8859-1") else NotImplemented


def _array(*args: Any) -> Any:
    return PickledArray()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Any:
    """An array as written by pickle protocol 5."""
    if not isinstance(content, (bytes, bytearray)) or order not in ("C", "F"):
        return NotImplemented
    return PickledArray(state=(1, shape, dtype, order == "F", bytes(content)))


def _dtype(text: Any, *_: Any) -> Any:
    return PickledArray(text) if isinstance(text, str) else NotImplemented


MAKERS: dict[str, Maker] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "_codecs.encode": _encode,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.dtype": _dtype}
for _module in ("builtins", "__builtin__"):
    MAKERS |= {f"{_module}.set": _list, f"{_module}.frozenset": _list, f"{_module}.list": _list,
               f"{_module}.tuple": tuple_of, f"{_module}.dict": _dict}
