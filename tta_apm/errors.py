"""The one error that a user sees: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import errno
import math
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# A longer list of known names helps nobody.
MANY_NAMES = 30
NO_MESSAGE = "no message"
# Folders and files whose lines only lead to the code that raised.
OURS = frozenset({"importlib", "plugins.py", "registry.py"})
# Of an error's text: a library may list thousands of names.
LONGEST = 1500
# Of a network: as float32, with gradients and two moments, they take 160 GB.
MOST_WEIGHTS = 10**10
# What a library may advise and we do not: it lets a file run code.
_UNSAFE = "weights_only"


class UserError(Exception):
    """Wrong input. Its text is shown as it is and the command ends with exit code 2.

    It is no ValueError, so that code that reads a file can catch what the reading raises, and a
    sentence that is already made for the user passes.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to "unknown name": the nearest known one, or all of them if they are few."""
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
        owner: whose value it is, for the sentence; "" for nobody's.
        key: what it is; "" where the owner says that.
    """
    if value not in known:
        noun = f"unknown {key}".rstrip()
        raise UserError(f"{_of(owner)}{noun} {value!r}: {nearest(value, known)}")


def at_least(low: float, owner: str, **values: float) -> None:
    """Raise UserError for a value that is below `low`, infinite or NaN.

    Args:
        owner: whose values they are, for the sentence; "" for nobody's.
        values: by the names of their keys.
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
    """Raise UserError for a value that is not between `low` and `high`; both are allowed."""
    for key, value in values.items():
        if not low <= value <= high:
            raise UserError(f"{_of(owner)}{key} {value} must be between {low} and {high}")


def multiple_of(step: int, owner: str, name: str = "", **values: int) -> None:
    """Raise UserError for a value that is below 1 or not a multiple of `step`, which has a name."""
    for key, value in values.items():
        at_least(1, owner, **{key: value})
        if value % step:
            raise UserError(f"{_of(owner)}{key} {value} is not a multiple of "
                            f"{f'{name} {step}'.lstrip()}")


def _of(owner: str) -> str:
    return f"{owner}: " if owner else ""


def reason(error: OSError) -> str:
    """What the system says of a file: "No space left on device"."""
    return error.strerror or text_of(error)


def corrupt(file: Path, error: BaseException, advice: str = "", *, kind: str = "") -> UserError:
    """FILE is corrupt or incomplete: why, and what to do. `kind`: what else it may fail to be."""
    nature = f"corrupt, incomplete or not {kind}" if kind else "corrupt or incomplete"
    return UserError(f"{file} is {nature}: {explain(error)}{advice and f'. {advice}'}")


@contextmanager
def writing(what: str | Path, advice: str = "") -> Iterator[None]:
    """Within, an OSError is the UserError "cannot write WHAT: ...", with what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {what}: {reason(error)}{advice and f'; {advice}'}") \
            from error


def check_widths(what: str, widths: Sequence[int]) -> None:
    """Raise UserError for an MLP of more weights than any memory holds."""
    num_weights = sum(inputs * outputs for inputs, outputs in zip(widths, widths[1:]))
    if num_weights > MOST_WEIGHTS:
        raise UserError(f"{what} of widths {list(widths)} has {num_weights:.0e} weights, too many "
                        "for any memory")


def text_of(error: BaseException) -> str:
    """What an exception says, on one line; also of one whose text cannot be made."""
    try:
        return " ".join(str(error).split()) or NO_MESSAGE
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "its message cannot be shown"


def raised_at(error: BaseException, file: Path | None = None) -> str:
    """Where an error in code of others was raised, in brackets; `file`: the last line in it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if not frame.filename.startswith("<") and not OURS & {*Path(frame.filename).parts}]
    own = [frame for frame in frames if file and frame.filename == str(file.resolve())]
    return next((f" ({frame.filename}, line {frame.lineno})"
                 for frame in [*reversed(own), *reversed(frames)]), "")


def beyond_the_machine(error: BaseException) -> str | None:
    """A sentence for what a value asks for and no code of ours can check before: a name that the
    file system does not take, more memory than there is. None for any other error."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"a name is too long for the file system: {str(error.filename)[:100]}..."
    text = text_of(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return f"there is not enough memory for what is asked: {explain(error)}"
    return None


def explain(error: BaseException) -> str:
    """All that a library's error says, in one line, without advice to let files run code."""
    text = _without_advice(error)
    return f"{type(error).__name__}, {text}" if text == NO_MESSAGE else text


def name_and_text(error: BaseException) -> str:
    """As `explain`, after the name of the error's class: "ValueError: no luck"."""
    return f"{type(error).__name__}: {_without_advice(error)}"


def _without_advice(error: BaseException) -> str:
    sentences = re.split(r"(?<=[.!?]) ", text_of(error))
    text = " ".join(sentence for sentence in sentences if _UNSAFE not in sentence)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ... ({len(text) - LONGEST:,} more letters)"
    return text
