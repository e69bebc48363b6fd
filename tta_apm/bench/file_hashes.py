"""Hashes of files' content, each file read once as long as its size and time stay. No torch."""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress
from pathlib import Path

from tta_apm.atomic import atomic_path
from tta_apm.cache import cache_folder

# A file that was written within so many seconds before it was read may be written again in the
# same tick of the file system's clock: its hash is used, but not remembered.
SETTLED_SECONDS = 2.0
HASH = re.compile("[0-9a-f]{16}")


def hash_file(path: Path) -> str:
    """Short sha256 of a file's content, 16 hexadecimal digits.

    It is remembered in the user's cache under the file's path, size, time and number; a cache
    that is damaged or cannot be written costs reading the file again.

    Raises:
        OSError: if the file cannot be read.
    """
    path = path.resolve()
    state = path.stat()
    key = f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ino}"
    known = remembered(key)
    if known:
        return known
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    short = digest.hexdigest()[:16]
    if time.time_ns() - state.st_mtime_ns > SETTLED_SECONDS * 1e9:
        remember(key, short)
    return short


def remembered(key: str) -> str:
    """What is remembered under `key`, "" if nothing is."""
    note = _note(key)
    with suppress(OSError, UnicodeDecodeError):
        text = note.read_text(encoding="ascii") if key and note else ""
        return text if HASH.fullmatch(text) else ""
    return ""


def remember(key: str, short: str) -> None:
    """Keep a hash of 16 hexadecimal digits; a folder that cannot be written to is done without."""
    note = _note(key)
    if key and note:
        with suppress(OSError), atomic_path(note) as temporary:
            temporary.write_text(short, encoding="ascii")


def _note(key: str) -> Path | None:
    """A small file for each key, so that no two runs write one for different keys."""
    caches = cache_folder()
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return None if caches is None else caches / "hashes" / name
