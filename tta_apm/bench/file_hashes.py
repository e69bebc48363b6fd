"""File hashes: hash the content of files, with a cache by path, size and time. No torch."""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress
from pathlib import Path

from tta_apm.atomic import atomic_path
from tta_apm.cache import cache_folder

# A file that was just written may be written again within the same tick of the file system's
# clock: its hash is cached only if the last write is older than this.
SETTLED_SECONDS = 2.0
HASH = re.compile("[0-9a-f]{16}")


def hash_file(path: Path) -> str:
    """A sha256 of a file's content, cut to 16 hexadecimal digits.

    The hash is cached under the file's path, size, time and inode. If the cache is corrupt or
    cannot be written, the file is read again.

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
    """The hash that is cached under `key`, "" if there is none."""
    note = _note(key)
    with suppress(OSError, UnicodeDecodeError):
        text = note.read_text(encoding="ascii") if key and note else ""
        return text if HASH.fullmatch(text) else ""
    return ""


def remember(key: str, short: str) -> None:
    """Cache a hash of 16 hexadecimal digits; nothing is cached if the folder is not writable."""
    note = _note(key)
    if key and note:
        with suppress(OSError), atomic_path(note) as temporary:
            temporary.write_text(short, encoding="ascii")


def _note(key: str) -> Path | None:
    """The cache file of a key; one for each key, so that runs do not overwrite each other's."""
    caches = cache_folder()
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return None if caches is None else caches / "hashes" / name
