"""Counts: count the updates, passes and resets of a method while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from tta_apm.backbones.passes import Passes, passes
from tta_apm.bench import measure
from tta_apm.bench.isolation import MethodError

# The names of the counts, each over all images of a cell; see docs/methods.md.
COUNTED = ("updated", "forwards", "backwards", "resets")


class Counts:
    """Counts the work of a method in its calls.

    Forwards and backwards are counted at the backbones. Updates are counted at the optimisers: all
    images of a call in which one steps. A count that the method keeps itself in `did` is preferred.
    """

    def __init__(self) -> None:
        self.passes = Passes()
        self.updated = 0
        self._did_before: Mapping[str, int] | None = None
        self._did: Mapping[str, int] = {}

    @contextmanager
    def during_call(self, num_images: int) -> Iterator[None]:
        """Count inside the `with` block, a call of the method with `num_images` images."""
        token = passes.set(self.passes)
        try:
            with measure.around_gradients(self._gradient):
                yield
        finally:
            passes.reset(token)
            self.updated += num_images if self.passes.steps else 0
            self.passes.open = self.passes.steps = 0

    @contextmanager
    def _gradient(self) -> Iterator[None]:
        self.passes.gradient()
        yield

    def note(self, did: Any) -> None:
        """Note the method's own counts, `did`: before the first call and after the last one.

        Raises:
            MethodError: if they are invalid.
        """
        checked = checked_did(did)
        if self._did_before is None:
            self._did_before = checked
        for name, count in self._did_before.items():
            if checked.get(name, 0) < count:
                raise MethodError(f"has did {name!r} that fell: it counts from the method's start")
        self._did = checked

    def share(self, share: float) -> dict[str, float]:
        """The counts by name, see COUNTED, times `share`; integers if `share` is 1."""
        before = self._did_before or {}
        counts = {"updated": self.updated, "forwards": self.passes.forwards,
                  "backwards": self.passes.backwards, "resets": 0}
        counts |= {name: count - before.get(name, 0) for name, count in self._did.items()}
        return {name: count if share == 1 else count * share for name, count in counts.items()}


def _count_step(*_: object) -> None:
    if (counted := passes.get()) is not None:
        counted.steps += 1


# Registered once for the process: SharedWork would take a hook that is added for each call for a
# change of torch's settings.
register_optimizer_step_pre_hook(_count_step)


def checked_did(did: Any) -> dict[str, int]:
    """A copy of a method's `did`; MethodError if it is not a dict of counts by COUNTED."""
    if not isinstance(did, Mapping):
        raise MethodError(f"has `did` of type {type(did).__name__} instead of a dict")
    for name, count in did.items():
        if name not in COUNTED:
            raise MethodError(f"has did {name!r}, which is unknown; known: "
                              f"{', '.join(COUNTED)}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise MethodError(f"has did {name!r} of {count!r} instead of a count")
    return dict(did)
