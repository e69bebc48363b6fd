"""Lists: text files with an entry on each line, such as the names of classes in their order."""

from __future__ import annotations

from pathlib import Path

from tta_apm.errors import UserError


def read_list(file: Path, advice: str) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte-order mark, spaces around them cut off.

    Raises:
        UserError: if it cannot be read, or if one of its lines but the last ones is empty.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; {advice}") from error
    entries = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if "" in entries:
        raise UserError(f"{file}: line {entries.index('') + 1} is empty; {advice}")
    return entries
