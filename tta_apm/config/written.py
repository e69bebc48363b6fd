"""Written: the values of a config file or command line, before they are converted.

On the command line, `[a, b]` is a list if the key takes one. Commas separate the entries, except
inside quotes or brackets. Quotes around a whole value or entry are removed: `'""'` is empty text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import yaml

from tta_apm.errors import UserError

QUOTES = "'\""
MAX_SHOWN = 60  # characters of a value in an error
# The types of scalars, by their names in errors.
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
        """The value as YAML reads it, for a key of unknown type."""
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
        """The entries of `[a, b]`; None if it is not a list."""
        if not self.text.startswith("[") or self.quoted:
            return None
        closing = next((index for index, _, depth in _characters(self.text) if depth == 0), None)
        if closing != len(self.text) - 1:
            raise UserError(f"{shortened(self.text)!r} is not a list: its first bracket does not "
                            "close at its end")
        words = [word.strip() for word in split(self.text[1:-1], ",")]
        return [word_of(text) for text in (words[:-1] if words[-1] == "" else words)]


# A value as it is written, before its conversion.
Written = Union[Scalar, Sequence["Written"], Mapping[str, "Written"]]


def shortened(text: str) -> str:
    """The first MAX_SHOWN characters of `text`."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def word_of(text: str) -> Word:
    """A value of the command line, without quotes around the whole of it."""
    if len(text) > 1 and text[0] in QUOTES and _end(text, 0) == len(text) - 1:
        return Word(text[1:-1], quoted=True)
    return Word(text)


def split(text: str, separator: str) -> list[str]:
    """Split a text at the separators that are not inside quotes or brackets.

    The separator " " means any white space, and empty parts are then left out.
    """
    parts, begin = [], 0
    for index, character, depth in _characters(text):
        if depth == 0 and (character == separator or separator == " " and character.isspace()):
            parts.append(text[begin:index])
            begin = index + 1
    parts.append(text[begin:])
    return [part for part in parts if part] if separator == " " else parts


def _characters(text: str) -> Iterator[tuple[int, str, int]]:
    """The characters outside of quotes, with their index and the number of open brackets.

    A quote opens only at the beginning of a word: that of "it's" is an apostrophe.
    """
    depth = index = 0
    while index < len(text):
        character = text[index]
        end = None
        if character in QUOTES and (index == 0 or text[index - 1] in " \t\n[{,"):
            end = _end(text, index)
        if end is None:
            depth += (character in "[{") - (character in "]}")
            yield index, character, depth
        index = (index if end is None else end) + 1


def _end(text: str, begin: int) -> int | None:
    """The index of the quote that closes the one at `begin`; None if none does."""
    end = text.find(text[begin], begin + 1)
    return None if end < 0 else end
