"""Errors: UserError, a sentence that says what is wrong, where, and what to do; and its helpers."""

from __future__ import annotations

import difflib
import errno
import math
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Up to so many known names are all listed.
MANY_NAMES = 30
NO_MESSAGE = "no message"
# Folders and files that import a user's code: frames in them do not say where it raised.
LOADERS = frozenset({"importlib", "plugins.py", "registry.py"})
# Characters of an error's text: a library may list thousands of names.
MAX_LENGTH = 1500
# Weights of an MLP: as float32, with gradients and two moments, they take 160 GB.
MAX_WEIGHTS = 10**10
# Sentences with this word are left out: torch advises an option that lets a file run code.
_UNSAFE = "weights_only"


class UserError(Exception):
    """Wrong input. The command prints its text and ends with exit code 2.

    It does not derive from ValueError: code that reads a file catches ValueError to say that the
    file is corrupt, and must not catch a UserError.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known name, or the known names."""
    names = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    if len(names) > MANY_NAMES:
        some = [by_lower[key] for key in difflib.get_close_matches(name.lower(), by_lower, n=5,
                                                                   cutoff=0.0)]
        return f"there are {len(names)}, such as {', '.join(some)}."
    return f"known: {', '.join(names) or 'none'}."


def choose(owner: str, key: str, value: str, known: Collection[str]) -> None:
    """Raise UserError with the nearest known name unless `value` is one of `known`.

    Args:
        owner: what the value belongs to, e.g. a method; the message starts with it unless it is "".
        key: what the value is, e.g. "optimiser"; "" if the owner says that.
    """
    if value not in known:
        noun = f"unknown {key}".rstrip()
        raise UserError(f"{_of(owner)}{noun} {value!r}: {nearest(value, known)}")


def at_least(low: float, owner: str, **values: float) -> None:
    """Raise UserError for a value that is below `low`, infinite or NaN.

    Args:
        owner: what the values belong to, as in `choose`.
        values: the values by the names of their keys.
    """
    for key, value in values.items():
        if not low <= value < math.inf:
            raise UserError(f"{_of(owner)}{key} {value} must be at least {low}"
                            f"{_and_finite(value)}")


def positive(owner: str, **values: float) -> None:
    """Raise UserError for a value that is 0, negative, infinite or NaN."""
    for key, value in values.items():
        if not 0 < value < math.inf:
            raise UserError(f"{_of(owner)}{key} {value} must be positive{_and_finite(value)}")


def _and_finite(value: float) -> str:
    return "" if math.isfinite(value) else " and finite"


def between(low: float, high: float, owner: str, **values: float) -> None:
    """Raise UserError for a value outside of [low, high]."""
    for key, value in values.items():
        if not low <= value <= high:
            raise UserError(f"{_of(owner)}{key} {value} must be between {low} and {high}")


def multiple_of(step: int, owner: str, name: str = "", **values: int) -> None:
    """Raise UserError for a value that is below 1 or not a multiple of `step`.

    Args:
        name: what `step` is, e.g. "the patch size"; "" to print the number alone.
    """
    for key, value in values.items():
        at_least(1, owner, **{key: value})
        if value % step:
            raise UserError(f"{_of(owner)}{key} {value} is not a multiple of "
                            f"{f'{name} {step}'.lstrip()}")


def _of(owner: str) -> str:
    return f"{owner}: " if owner else ""


def reason(error: OSError) -> str:
    """The system's message of a file error, e.g. "No space left on device"."""
    return error.strerror or text_of(error)


def corrupt(file: Path, error: BaseException, advice: str = "", *, kind: str = "") -> UserError:
    """The error for a file that cannot be read.

    Args:
        error: raised while the file was read.
        advice: what to do, a sentence without its full stop.
        kind: what the file should be, e.g. "a record", if it may be of another kind.
    """
    nature = f"corrupt, incomplete or not {kind}" if kind else "corrupt or incomplete"
    return UserError(f"{file} is {nature}: {explain(error)}{advice and f'. {advice}'}")


@contextmanager
def writing(what: str | Path, advice: str = "") -> Iterator[None]:
    """Inside the `with` block, turn an OSError into the UserError "cannot write WHAT: ..."."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {what}: {reason(error)}{advice and f'; {advice}'}") \
            from error


def check_widths(what: str, widths: Sequence[int]) -> None:
    """Raise UserError if an MLP of these layer widths has more than MAX_WEIGHTS weights."""
    num_weights = sum(inputs * outputs for inputs, outputs in zip(widths, widths[1:]))
    if num_weights > MAX_WEIGHTS:
        raise UserError(f"{what} of widths {list(widths)} has {num_weights:.0e} weights, too many "
                        "for any memory")


def text_of(error: BaseException) -> str:
    """The text of an exception on one line; never raises, whatever its __str__ does."""
    try:
        return " ".join(str(error).split()) or NO_MESSAGE
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "its message cannot be shown"


def raised_at(error: BaseException, file: Path | None = None) -> str:
    """The file and line that raised an error, in brackets, for errors in the code of a user.

    Args:
        file: prefer the last line in this file.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if not frame.filename.startswith("<") and not LOADERS & {*Path(frame.filename).parts}]
    own = [frame for frame in frames if file and frame.filename == str(file.resolve())]
    return next((f" ({frame.filename}, line {frame.lineno})"
                 for frame in [*reversed(own), *reversed(frames)]), "")


def resource_error(error: BaseException) -> str | None:
    """A message for errors that cannot be checked for in advance: a file name that is too long for
    the file system, or too little memory. None for any other error."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"a name is too long for the file system: {str(error.filename)[:100]}..."
    text = text_of(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return f"out of memory: {explain(error)}"
    return None


def explain(error: BaseException) -> str:
    """The text of a library's error on one line, without advice to let files run code."""
    text = _without_advice(error)
    return f"{type(error).__name__}, {text}" if text == NO_MESSAGE else text


def name_and_text(error: BaseException) -> str:
    """The class and the text of an error, e.g. "ValueError: no luck"; see `explain`."""
    return f"{type(error).__name__}: {_without_advice(error)}"


def _without_advice(error: BaseException) -> str:
    sentences = re.split(r"(?<=[.!?]) ", text_of(error))
    text = " ".join(sentence for sentence in sentences if _UNSAFE not in sentence)
    if len(text) > MAX_LENGTH:
        text = f"{text[:MAX_LENGTH]} ... ({len(text) - MAX_LENGTH:,} more characters)"
    return text
