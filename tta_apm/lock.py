"""Lock: only one process at a time writes to a folder. Imports no torch.

The lock file names its holder and the work. The operating system releases the lock when the holder
ends, even if it is killed. Where the file system has no locks, the file itself is the lock: the
holder touches it every few seconds, and a lock that is not touched any more is taken over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tta_apm.atomic import is_alive, machine, remove_leftovers
from tta_apm.errors import UserError, writing

NAME = ".lock"
POLL_SECONDS = 0.5
BRIEF_POLL_SECONDS = 0.005  # for a lock that is held briefly
TOUCH_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a touch, after which the holder counts as dead
_HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Errors of a folder that this process cannot write to.
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold the lock of `folder` inside the `with` block; wait for a process with the same work.

    The folder is created if needed, and stale temporary files in it are removed. A folder that this
    process cannot write to needs no lock.

    Args:
        work: a text that identifies the work, e.g. the config.

    Raises:
        UserError: if another process holds the lock for other work, or the disk is full.
    """
    about = {"host": platform.node(), "machine": machine(), "pid": os.getpid(),
             "work": hashlib.sha256(work.encode("utf-8", "replace")).hexdigest()[:16],
             "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    is_new = not folder.exists()
    lock = _lock_of(folder, about)
    try:
        if lock:
            remove_leftovers(folder)
        yield
    finally:
        if lock:
            lock.release()
            if is_new:  # leave no empty folder behind
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def briefly_locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` inside the `with` block; wait for other holders, whatever they do.

    The folder is created if needed.

    Raises:
        OSError: if this process cannot write there.
    """
    about = {"host": platform.node(), "machine": machine(), "pid": os.getpid()}
    lock, is_taken = _try(folder, _SystemLock(folder / NAME), about)
    while not is_taken:
        time.sleep(BRIEF_POLL_SECONDS)
        lock, is_taken = _try(folder, lock, about)
    try:
        yield
    finally:
        lock.release()


def _lock_of(folder: Path, about: dict[str, Any]) -> _SystemLock | _FileLock | None:
    """The lock of `folder`, held; None if this process cannot write there."""
    try:
        return _wait(folder, about)
    except OSError as error:
        if error.errno in READ_ONLY and not (folder / NAME).exists():
            return None
        with writing(f"to {folder}", "choose a folder of yours"):
            raise


def _wait(folder: Path, about: dict[str, Any]) -> _SystemLock | _FileLock:
    """Wait until the lock is free, and take it. UserError if it is held for other work."""
    lock: _SystemLock | _FileLock = _SystemLock(folder / NAME)
    before: dict[str, Any] | None = None
    is_announced = False
    while True:
        lock, is_taken = _try(folder, lock, about)
        if is_taken:
            return lock
        holder = _read(lock.file)
        # Only if read twice: the first time it may be that of a process that was just killed.
        if holder is not None and holder == before:
            who = (f"process {holder.get('pid')} on {holder.get('host')}, since "
                   f"{holder.get('since')}")
            if holder.get("work") != about["work"]:
                raise UserError(f"{folder} is being written to by another command or config "
                                f"({who}): wait for its end, or choose another folder")
            if not is_announced:
                print(f"{folder} is being written to by the same command ({who}): waiting for its "
                      "end", file=sys.stderr, flush=True)
            is_announced = True
        before = holder
        time.sleep(POLL_SECONDS)


def _try(folder: Path, lock: _SystemLock | _FileLock, about: dict[str, Any]
         ) -> tuple[_SystemLock | _FileLock, bool]:
    """Try to take the lock of `folder`.

    Returns:
        The lock, which becomes a _FileLock if the file system has no locks, and whether it is held.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return lock, lock.take(about)
        except FileNotFoundError:  # the previous holder has just removed the empty folder
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS or isinstance(lock, _FileLock):
                raise
            lock = _FileLock(folder / f"{NAME}-held")


def _read(file: Path) -> dict[str, Any] | None:
    """The holder that a lock file names; None if the file is empty or gone."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class _SystemLock:
    """A lock of the operating system, which releases it when the holder ends."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.descriptor = -1

    def take(self, about: dict[str, Any]) -> bool:
        """Try to take the lock; returns whether it is held. OSError if the file system has none."""
        self.descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT
                                  | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(self.descriptor)
            # The previous holder may have removed the file after it was opened here.
            if os.path.samestat(os.fstat(self.descriptor), os.stat(self.file)):
                os.ftruncate(self.descriptor, 0)
                os.write(self.descriptor, json.dumps(about).encode())
                return True
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _HELD:
                os.close(self.descriptor)
                raise
        os.close(self.descriptor)
        return False

    def release(self) -> None:
        with suppress(OSError):  # Windows cannot remove an open file: it stays, unlocked
            self.file.unlink()
        os.close(self.descriptor)


class _FileLock:
    """A lock file: the process that creates it holds the lock and touches it while it lives."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.ended = threading.Event()
        self.seen: tuple[float, float] | None = None  # its last touch, and when we first saw that

    def take(self, about: dict[str, Any]) -> bool:
        """Try to take the lock; returns whether it is held."""
        try:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if self._is_stale():
                self.file.unlink(missing_ok=True)  # the next try takes it
            return False
        with open(descriptor, "wb") as file:
            file.write(json.dumps(about).encode())
        threading.Thread(target=self._touch, daemon=True).start()
        return True

    def release(self) -> None:
        self.ended.set()
        self.file.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self.ended.wait(TOUCH_SECONDS):
            with suppress(OSError):
                os.utime(self.file)

    def _is_stale(self) -> bool:
        holder = _read(self.file)
        if holder is not None and holder.get("machine") == machine():
            return not is_alive(int(holder["pid"]))
        try:
            touched = self.file.stat().st_mtime
        except OSError:
            return False
        # Measured with this process's clock: clocks of other machines may differ.
        if self.seen is None or self.seen[0] != touched:
            self.seen = touched, time.monotonic()
        return time.monotonic() - self.seen[1] > STALE_SECONDS


if os.name == "nt":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # a byte after the text, which others must read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
