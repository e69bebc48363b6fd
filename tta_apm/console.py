"""Console: output errors do not stop a command, and signals stop it without a traceback."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

# Schedulers send these before they take the machine back; Windows has only the first.
SCHEDULERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2")
                   if hasattr(signal, name))
# One Ctrl-C may arrive twice within this time: from the terminal and from the shell.
REPEAT_SECONDS = 0.5
RETRY_SECONDS = 0.05  # between attempts to raise a signal that arrived during an import


def protect_output() -> None:
    """Make standard output and error drop what they cannot write, instead of raising.

    E.g. a character that the terminal's encoding lacks, a pipe that nobody reads any more, a full
    disk, or a stream that was closed before the start.
    """
    for descriptor in (0, 1, 2):  # else the next file that is opened would get this descriptor
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _tolerant(stream))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _tolerant(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """A stream to the same file that drops what it cannot write."""
    with suppress(OSError):
        stream.flush()
    raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # itself where Python is unbuffered
    return io.TextIOWrapper(io.BufferedWriter(_Tolerant(raw)), encoding=stream.encoding,
                            errors="replace", line_buffering=stream.line_buffering,
                            write_through=stream.write_through)


class _Tolerant(io.RawIOBase):
    """Writes to `raw` and drops what `raw` refuses."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw

    def write(self, content: Any) -> int:
        try:
            return int(self.raw.write(content))
        except (OSError, TypeError):  # TypeError: a full non-blocking pipe returns None
            return len(content)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.raw.isatty()

    def fileno(self) -> int:
        return self.raw.fileno()


class Interrupts:
    """Handles Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 inside a `with` block of the main thread.

    The first signal raises KeyboardInterrupt; a second one ends the process at once. Signals that
    are ignored, or handled by other code, are left alone. In other threads it does nothing.

    Args:
        take_over: handle the signals of schedulers even if other code handles them already. A
            second one is only noted: schedulers send several, and kill a process that stays.

    Attributes:
        number: the number of the first signal; 0 before one arrives. Once it is set, any exception
            may be a consequence of the signal: libraries catch KeyboardInterrupt and raise others.
        last: the number of the last signal.
    """

    def __init__(self, *, take_over: bool = False) -> None:
        self.take_over = take_over
        self.number = self.last = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal stops: 128 + its number, as in shells."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *SCHEDULERS):
                handler = signal.getsignal(number)
                if handler is (signal.default_int_handler if number == signal.SIGINT
                               else signal.SIG_DFL) or self.take_over and number in SCHEDULERS:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _asked.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.last = number
        if self.number:
            if now - self._since > REPEAT_SECONDS and not self.take_over:
                with suppress(OSError):
                    os.write(2, b"\nStopped at once.\n")
                os._exit(self.exit_code)
            return
        self.number, self._since = number, now
        _asked.append(number)
        if _sections:
            return
        if not _imports(frame):
            raise KeyboardInterrupt
        # The handler may run inside compiled code that sets up a module. An exception from there
        # would abort the process (SIGABRT), so another thread raises it later.
        threading.Thread(target=_raise_between_instructions, args=(threading.get_ident(),),
                         daemon=True).start()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A `with` block of the main thread at whose end a signal raises KeyboardInterrupt.

    It protects steps that block other processes if they are left half done, e.g. under a lock.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = len(_asked)
    _sections.append(None)
    try:
        yield
    finally:
        _sections.pop()
        if len(_asked) > before and not _sections:
            raise KeyboardInterrupt


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal has arrived.

    The first KeyboardInterrupt may have been lost: Python drops exceptions in destructors and
    callbacks, and libraries may catch it.
    """
    if _asked:
        raise KeyboardInterrupt


# The signals that asked the running command to stop.
_asked: list[int] = []
# One entry for each `uninterrupted` block that the main thread is in.
_sections: list[None] = []


def _imports(frame: FrameType | None) -> bool:
    """Whether `frame` is inside the import of a module."""
    return any(each.f_code.co_filename.startswith("<frozen importlib") for each in _stack(frame))


def _loads_an_extension(frame: FrameType | None) -> bool:
    """Whether `frame` is inside the import of a compiled module."""
    return any(each.f_code.co_name in ("create_module", "exec_module")
               and isinstance(each.f_locals.get("self"), ExtensionFileLoader)
               for each in _stack(frame))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, its caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _raise_between_instructions(thread: int) -> None:
    """Raise KeyboardInterrupt before the next Python instruction of another thread, as soon as it
    is not inside the import of a compiled module."""
    time.sleep(RETRY_SECONDS)
    while _loads_an_extension(sys._current_frames().get(thread)):
        time.sleep(RETRY_SECONDS)
    if _asked:  # the command still runs
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread),
                                                   ctypes.py_object(KeyboardInterrupt))


def finish_quickly() -> None:
    """Prepare the end of the process: a Ctrl-C prints no traceback any more, and the last garbage
    collection, which takes a second with torch loaded, is skipped."""
    gc.freeze()
    if threading.current_thread() is threading.main_thread() \
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
