"""Atomic writes: a file is written completely or not at all. Imports no torch.

The content is written to a temporary file, which is then renamed. The temporary name is unique
over processes and machines and holds the id of the process, so that a later run can remove the
files that a killed process left.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tta_apm.errors import UserError, reason, writing

TEMPORARY = ".tmp"
# .tta-apm-MACHINE-PID-RANDOM.tmp
_OURS = re.compile(r"\.tta-apm-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}" + re.escape(TEMPORARY))
# A temporary file of another machine counts as left over after this time without a write.
STALE_SECONDS = 24 * 3600.0


def is_temporary(path: Path) -> bool:
    """Whether `path` is a temporary file of an atomic write."""
    return path.name.endswith(TEMPORARY)


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file, which is renamed to `path` at the end of the `with` block.

    The folder of `path` is created if needed. If the block raises, the temporary file is removed
    and `path` stays as it was.

    Args:
        durable: flush the file to the disk, so that it survives a power failure. This takes some
            milliseconds. Without it the file still survives the death of the process.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".tta-apm-{machine()}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    # O_EXCL and O_NOFOLLOW: do not write through a symbolic link of that name.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL
                     | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, and remove stale temporary files beside it.

    Raises:
        UserError: if the file cannot be written, e.g. because the disk is full.
    """
    with writing(path), atomic_path(path) as temporary:
        temporary.write_bytes(content)
        with suppress(OSError):
            _remove_stale(path.parent, os.listdir(path.parent))


def remove_leftovers(folder: Path) -> None:
    """Remove the stale temporary files in `folder` and below."""
    for parent, _, names in os.walk(folder):
        _remove_stale(Path(parent), names)


def _remove_stale(folder: Path, names: Sequence[str]) -> None:
    """Remove those of the named files that are temporary and whose process has ended."""
    for name in names:
        if found := _OURS.fullmatch(name):
            path = folder / name
            with suppress(OSError):
                if (found[1] == machine() and not is_alive(int(found[2]))
                        or time.time() - path.stat().st_mtime > STALE_SECONDS):
                    path.unlink()


@cache
def machine() -> str:
    """An id of this machine, 8 hexadecimal digits, for files on a shared disk."""
    name = platform.node()
    with suppress(OSError):  # containers may share a host name, but have process ids of their own
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def started(pid: int) -> str:
    """The start time of process `pid` of this machine, in clock ticks; "" if it is unknown.

    Process ids are reused: the id and the start time together identify a process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        after_name = text.rpartition(")")[2]
        return after_name.split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(pid: int, since: str = "") -> bool:
    """Whether process `pid` runs on this machine; True if it is unknown.

    Args:
        since: the start time of the process, see `started`; "" for any process of that id.
    """
    if since and started(pid) not in (since, ""):
        return False
    if os.name == "nt":  # there, os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def require_path(path: Path, key: str) -> None:
    """Raise UserError if `path`, the value of the config key `key`, is not a valid path.

    E.g. a part of it is too long or holds a character that file names cannot hold.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # ValueError: null characters, lone surrogates
        why = (reason(error) if isinstance(error, OSError)
               else "it holds a character that no file name can")
        raise UserError(f"{key} {str(path)!r} cannot be used: {why}") from error


def _flush_folder(folder: Path) -> None:
    """Flush the names of the files in `folder` to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
