"""Names: make texts from outside safe to print on one line of a terminal, a table or a file."""

from __future__ import annotations

import unicodedata
from typing import Any

# Unicode categories of characters that a terminal obeys or does not show: control characters,
# format characters (bidirectional, zero-width), line and paragraph separators, surrogates, private
# use, unassigned.
UNPRINTABLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
REPLACEMENT = "?"


def clean(text: str) -> str:
    """`text` on one line: line breaks become spaces, other unprintable characters "?".

    Call it where a text from outside is read: a record, a log, the class names of a data set.
    """
    return "".join(_fit(character) for character in text)


def clean_lines(text: str) -> str:
    """As `clean`, but keeps line breaks."""
    return "\n".join(map(clean, text.split("\n")))


def clean_all(content: Any) -> Any:
    """A copy of `content`, as read from JSON or YAML, with all texts and keys clean."""
    if isinstance(content, str):
        return clean(content)
    if isinstance(content, dict):
        return {clean_all(key): clean_all(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [clean_all(value) for value in content]
    return content


def _fit(character: str) -> str:
    if unicodedata.category(character) not in UNPRINTABLE:
        return character
    return " " if character.isspace() else REPLACEMENT
