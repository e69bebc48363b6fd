"""written: values as a config's file or command line has them, before their type is known.

On the command line text is taken as it stands; `[a, b]` is a list for a key that takes one, in
which commas part the entries, and quotes or brackets hold an entry together. A value or entry that
stands in quotes as a whole loses them: `'""'` is empty text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import yaml

from tta_apm.errors import UserError

QUOTES = "'\""
LONGEST_SHOWN = 60  # of a value in an error
# Types of values that are neither lists nor sections, as errors name them.
TYPE_NAMES: dict[type | None, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Scalar:
    """A value of a YAML file that is neither a list nor a section."""

    text: str
    quoted: bool = False

    @property
    def is_null(self) -> bool:
        return not self.quoted and self.text in ("", "~", "null", "Null", "NULL")

    def plain(self) -> Any:
        """What YAML makes of it, for a key of unknown type."""
        if self.quoted:
            return self.text
        try:
            value = yaml.safe_load(self.text)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2024-99-99 is no date
            return self.text
        return value if value is None or type(value) in TYPE_NAMES else self.text


@dataclass(frozen=True)
class Word(Scalar):
    """A value on the command line: text, or a list or a section in YAML's flow style."""

    def entries(self) -> list[Word] | None:
        """The entries of `[a, b]`; None for what is no list."""
        if not self.text.startswith("[") or self.quoted:
            return None
        closing = next((index for index, _, depth in _signs(self.text) if depth == 0), None)
        if closing != len(self.text) - 1:
            raise UserError(f"{shortened(self.text)!r} is not a list: its first bracket does not "
                            "close at its end")
        words = [word.strip() for word in split(self.text[1:-1], ",")]
        return [word_of(text) for text in (words[:-1] if words[-1] == "" else words)]


# A value as it is written.
Written = Union[Scalar, Sequence["Written"], Mapping[str, "Written"]]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def word_of(text: str) -> Word:
    """A value on the command line; quotes around all of it fall away."""
    if len(text) > 1 and text[0] in QUOTES and _end(text, 0) == len(text) - 1:
        return Word(text[1:-1], quoted=True)
    return Word(text)


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that no quotes or brackets enclose.

    The separator " " stands for any white space, and leaves no empty parts.
    """
    parts, begin = [], 0
    for index, sign, depth in _signs(text):
        if depth == 0 and (sign == separator or separator == " " and sign.isspace()):
            parts.append(text[begin:index])
            begin = index + 1
    parts.append(text[begin:])
    return [part for part in parts if part] if separator == " " else parts


def _signs(text: str) -> Iterator[tuple[int, str, int]]:
    """The characters outside of quotes, with their indices and how many brackets are open.

    A quote opens at the beginning of a word only: that of "it's" is an apostrophe.
    """
    depth = index = 0
    while index < len(text):
        sign = text[index]
        end = None
        if sign in QUOTES and (index == 0 or text[index - 1] in " \t\n[{,"):
            end = _end(text, index)
        if end is None:
            depth += (sign in "[{") - (sign in "]}")
            yield index, sign, depth
        index = (index if end is None else end) + 1


def _end(text: str, begin: int) -> int | None:
    """The index of the quote that closes the one at `begin`."""
    end = text.find(text[begin], begin + 1)
    return None if end < 0 else end
