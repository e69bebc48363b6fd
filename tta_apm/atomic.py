"""Writing aside, then renaming: a file is whole, or as it was before. Imports no torch.

A temporary file has a name that no other process takes, on whatever machine, and that says whose
it is: what a kill leaves is found and removed by the next run.
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

from tta_apm.errors import UserError

TEMPORARY = ".tmp"
# .tta-apm-MACHINE-PID-RANDOM.tmp
_OURS = re.compile(r"\.tta-apm-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}" + re.escape(TEMPORARY))
# Without a write for so long, a temporary file of another machine is nobody's any more.
FORGOTTEN_SECONDS = 24 * 3600.0


def is_temporary(path: Path) -> bool:
    """Whether `path` is on its way to become another file, or was left on it by a kill."""
    return path.name.endswith(TEMPORARY)


@contextmanager
def aside(path: Path, durable: bool = True) -> Iterator[Path]:
    """Where to write what becomes `path` when it is whole; its folder is made.

    The file is there, empty, under a name of its own beside `path`: it is to be opened, written
    and closed.

    Args:
        durable: whole even if the power fails right after, which takes a disk milliseconds; else
            whole whatever happens to the process.

    Raises:
        OSError: as writing does; what was written is then gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".tta-apm-{machine()}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    # Made anew, so that nothing is written through a link that lies there.
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


def write_aside(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds all of it or is as it was.

    What a killed process left beside it is removed.

    Raises:
        UserError: if it cannot be written: a folder of somebody else's, a full disk.
    """
    try:
        with aside(path) as temporary:
            temporary.write_bytes(content)
            with suppress(OSError):
                _remove_of_the_dead(path.parent, os.listdir(path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files below `folder` that processes left which are no more."""
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
    """What tells this machine, or this container, from others that share a disk: 8 hex digits."""
    name = platform.node()
    with suppress(OSError):  # containers of one host name count their processes apart
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Whether there is a process `pid` on this machine; where that cannot be asked, True."""
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
    """Raise UserError unless `path`, which `key` names, can be a path here.

    A part of it may be too long for the file system, or hold what no name can.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # ValueError: zeros, halves of characters
        reason = (error.strerror if isinstance(error, OSError)
                  else "it holds a character that no file name can")
        raise UserError(f"{key} {str(path)!r} cannot be used: {reason}") from error


def _keep_name(folder: Path) -> None:
    """Have the names in `folder` on the disk, where a folder can be asked to."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
