"""Names: texts of others, made fit to stand on one line of a terminal, a table or a file."""

from __future__ import annotations

import unicodedata
from typing import Any

# Unicode's categories of what is obeyed or not seen: control characters and ESC sequences, bidi and
# zero-width signs, line and paragraph separators, halves of a character, private signs.
UNFIT = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
STAND_IN = "?"


def clean(text: str) -> str:
    """`text` on one line: what breaks a line becomes a space, what else is no letter or sign "?".

    To be called where a text of somebody else enters: a record, a log, a data set's class names.
    """
    return "".join(_fit(character) for character in text)


def clean_lines(text: str) -> str:
    """As `clean`, of a text whose line breaks are meant."""
    return "\n".join(map(clean, text.split("\n")))


def clean_all(content: Any) -> Any:
    """`content`, of dicts, lists and values as JSON and YAML have them, with all texts clean."""
    if isinstance(content, str):
        return clean(content)
    if isinstance(content, dict):
        return {clean_all(key): clean_all(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [clean_all(value) for value in content]
    return content


def _fit(character: str) -> str:
    if unicodedata.category(character) not in UNFIT:
        return character
    return " " if character.isspace() else STAND_IN
