"""The one error that a user sees: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input. Its text is shown as it is and the command ends with exit code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to "unknown name": the nearest known one, or all of them."""
    names = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    return f"known: {', '.join(names) or 'none'}."
