"""Console: output that ends nothing, and Ctrl-C that is answered at once and without a traceback.
"""

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

# What schedulers send before they take the machine back; Windows has only the first.
SCHEDULERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2")
                   if hasattr(signal, name))
# A terminal and a shell may both pass on one Ctrl-C.
SAME_SECONDS = 0.5
LATER_SECONDS = 0.05  # until a signal that came during an import is raised


def protect_output() -> None:
    """Have standard output and error lose what they cannot take instead of raising.

    That is: signs that the terminal's code page has not, a pipe whose reader has gone, a full
    disk, a stream that was closed from the start.
    """
    for descriptor in (0, 1, 2):  # else the next file that is opened would be taken for it
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
    with suppress(OSError):
        stream.flush()
    raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # itself where Python is unbuffered
    return io.TextIOWrapper(io.BufferedWriter(_Tolerant(raw)), encoding=stream.encoding,
                            errors="replace", line_buffering=stream.line_buffering,
                            write_through=stream.write_through)


class _Tolerant(io.RawIOBase):
    """What `raw` is, but that what it refuses is dropped."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw

    def write(self, content: Any) -> int:
        try:
            return int(self.raw.write(content))
        except (OSError, TypeError):  # TypeError: None of a pipe that is full and does not wait
            return len(content)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.raw.isatty()

    def fileno(self) -> int:
        return self.raw.fileno()


class Interrupts:
    """Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2, which schedulers send, while a command runs: the first
    one raises KeyboardInterrupt, a later one ends the process where it stands. In other threads,
    and where they are ignored, they are left as they are.

    Args:
        rule: whether to handle the schedulers' signals even where somebody else does.

    Attributes:
        number: of the signal that came first; 0 if none did. What is raised afterwards, by
            whatever code, comes from it.
    """

    def __init__(self, *, rule: bool = False) -> None:
        self.rule = rule
        self.number = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """Of a process that such a signal ends: 128 and the signal's number, as shells have it."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *SCHEDULERS):
                handler = signal.getsignal(number)
                if handler is (signal.default_int_handler if number == signal.SIGINT
                               else signal.SIG_DFL) or self.rule and number in SCHEDULERS:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _asked.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number:
            if now - self._since > SAME_SECONDS:
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
        # Python runs a handler within calls of compiled code, too. What C++ calls to set up a
        # module may not raise: it would end the process (SIGABRT).
        threading.Thread(target=_raise_between_instructions, args=(threading.get_ident(),),
                         daemon=True).start()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within, in the main thread, the first signal waits for the end: it would leave half done what
    holds up others, e.g. a lock."""
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
    """Raise KeyboardInterrupt once more after a signal that was lost: Python drops what is raised
    in a destructor or a callback, code of others may catch it."""
    if _asked:
        raise KeyboardInterrupt


# The signals that have come to the command that runs.
_asked: list[int] = []
# One for each `uninterrupted` that the main thread is in.
_sections: list[None] = []


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    return any(each.f_code.co_filename.startswith("<frozen importlib") for each in _stack(frame))


def _loads_an_extension(frame: FrameType | None) -> bool:
    """Whether a module of compiled code is being imported."""
    return any(each.f_code.co_name in ("create_module", "exec_module")
               and isinstance(each.f_locals.get("self"), ExtensionFileLoader)
               for each in _stack(frame))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, its caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _raise_between_instructions(thread: int) -> None:
    """Raise KeyboardInterrupt in another thread where its next instruction of Python begins,
    but not within the import of a module of compiled code."""
    time.sleep(LATER_SECONDS)
    while _loads_an_extension(sys._current_frames().get(thread)):
        time.sleep(LATER_SECONDS)
    if _asked:  # the command still runs
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread),
                                                   ctypes.py_object(KeyboardInterrupt))


def die_quickly_from_now_on() -> None:
    """For the last moments of the process, when all is done: a Ctrl-C shows no traceback, and
    Python does not look through all that torch has made for what could be freed, which takes a
    second."""
    gc.freeze()
    if threading.current_thread() is threading.main_thread() \
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
