"""Lists: text files with one entry per line, e.g. the names of classes in their order."""

from __future__ import annotations

from pathlib import Path

from tta_apm.errors import UserError


def read_list(file: Path, advice: str) -> list[str]:
    """The stripped lines of a UTF-8 file, which may have a byte-order mark.

    Raises:
        UserError: if it cannot be read, or has an empty line before the last entry.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; {advice}") from error
    entries = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if "" in entries:
        raise UserError(f"{file}: line {entries.index('') + 1} is empty; {advice}")
    return entries
