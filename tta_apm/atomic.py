"""Atomic writes: a file is complete, or as it was before. Imports no torch.

Content goes to a temporary file that is then renamed. Its name is unique over processes and
machines and says which process made it, so that the next run removes what a killed one left.
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
# Without a write for so long, a temporary file of another machine is nobody's any more.
FORGOTTEN_SECONDS = 24 * 3600.0


def is_temporary(path: Path) -> bool:
    """Whether `path` is a temporary file: of a write under way, or left by a killed process."""
    return path.name.endswith(TEMPORARY)


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary file that becomes `path` when the `with` block ends without an error.

    It exists, empty, beside `path`, whose folder is made: open it, write, close it.

    Args:
        durable: complete even if the power fails right after, which costs milliseconds; otherwise
            complete whatever happens to the process.

    Raises:
        OSError: as writing does; the temporary file is then removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".tta-apm-{machine()}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    # O_EXCL and O_NOFOLLOW: never write through a link that somebody put there.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL
                     | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _keep_name(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content`: `path` then holds all of it, or is as it was before.

    Temporary files beside it whose processes are dead are removed.

    Raises:
        UserError: if it cannot be written, e.g. because the disk is full.
    """
    with writing(path), atomic_path(path) as temporary:
        temporary.write_bytes(content)
        with suppress(OSError):
            _remove_of_the_dead(path.parent, os.listdir(path.parent))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files below `folder` whose processes are dead."""
    for parent, _, names in os.walk(folder):
        _remove_of_the_dead(Path(parent), names)


def _remove_of_the_dead(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if found := _OURS.fullmatch(name):
            path = folder / name
            with suppress(OSError):
                if (found[1] == machine() and not is_alive(int(found[2]))
                        or time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS):
                    path.unlink()


@cache
def machine() -> str:
    """An id of this machine or container among those that share a disk: 8 hex digits."""
    name = platform.node()
    with suppress(OSError):  # containers may share a host name; process ids are per namespace
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def started(pid: int) -> str:
    """When process `pid` of this machine began, in the system's ticks, which tells it from others
    that have had its number; "" where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        after_name = text.rpartition(")")[2]
        return after_name.split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(pid: int, since: str = "") -> bool:
    """Whether process `pid` runs on this machine; True where the system does not tell.

    Args:
        since: as `started` told it, to be sure that it is the same process.
    """
    if since and started(pid) not in (since, ""):
        return False
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def require_path(path: Path, key: str) -> None:
    """Raise UserError if the file system cannot take `path`, the value of `key`.

    E.g. a part of it is too long, or holds a character that no name can.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # ValueError: zeros, halves of characters
        why = (reason(error) if isinstance(error, OSError)
               else "it holds a character that no file name can")
        raise UserError(f"{key} {str(path)!r} cannot be used: {why}") from error


def _keep_name(folder: Path) -> None:
    """Flush the names in `folder` to the disk, on systems that can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
