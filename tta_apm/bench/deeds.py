"""Deeds: what a method did to the images it met, counted while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from tta_apm.backbones.passes import Passes, passes
from tta_apm.bench import measure
from tta_apm.bench.isolation import MethodError

# What is counted, over all images of a cell; see docs/methods.md.
DEEDS = ("updated", "forwards", "backwards", "resets")


class Deeds:
    """Counts what a method does in its calls.

    Forwards and backwards are counted at the backbones, updates at the optimisers: all images of a
    call in which one steps. What the method tells in `did` counts instead.
    """

    def __init__(self) -> None:
        self.passes = Passes()
        self.updated = 0
        self._told_before: Mapping[str, int] | None = None
        self._told: Mapping[str, int] = {}

    @contextmanager
    def of_call(self, num_images: int) -> Iterator[None]:
        """Around a call of the method with so many images."""
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

    def hear(self, did: Any) -> None:
        """What the method tells of all its life: before the first call, and after the last one.

        Raises:
            MethodError: if it tells what no record holds.
        """
        told = checked_did(did)
        if self._told_before is None:
            self._told_before = told
        for name, count in self._told_before.items():
            if told.get(name, 0) < count:
                raise MethodError(f"has did {name!r} that fell: it counts all that it ever did")
        self._told = told

    def share(self, share: float) -> dict[str, float]:
        """What was counted by name, see DEEDS, times `share`; whole where it is all."""
        before = self._told_before or {}
        counts = {"updated": self.updated, "forwards": self.passes.forwards,
                  "backwards": self.passes.backwards, "resets": 0}
        counts |= {name: count - before.get(name, 0) for name, count in self._told.items()}
        return {name: count if share == 1 else count * share for name, count in counts.items()}


def _count_step(*_: object) -> None:
    if (counted := passes.get()) is not None:
        counted.steps += 1


# Once and for good: a hook that came and went with each call would be a change of torch's
# settings, under which nobody shares any work.
register_optimizer_step_pre_hook(_count_step)


def checked_did(did: Any) -> dict[str, int]:
    """What a method tells, copied. MethodError for what no record holds."""
    if not isinstance(did, Mapping):
        raise MethodError(f"has `did` of type {type(did).__name__} instead of a dict")
    for name, count in did.items():
        if name not in DEEDS:
            raise MethodError(f"has did {name!r}, which no record holds; known: "
                              f"{', '.join(DEEDS)}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise MethodError(f"has did {name!r} of {count!r} instead of a count")
    return dict(did)
