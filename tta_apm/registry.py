"""Registry: methods, data sets etc. by name, from entry points and from a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from tta_apm.errors import UserError, choose, name_and_text, raised_at
from tta_apm.names import clean
from tta_apm.signature import Signature, inspect_signature, read_signature

T = TypeVar("T")


class Registry:
    """Objects of one kind by name: the entry points of `group`, and those given to `register`.

    A name that ends in `*` is a prefix: load("wds/vtab/dtd") returns the object registered as
    "wds/*", with name="wds/vtab/dtd" bound.

    Args:
        group: of entry points.
        noun: what the objects are, for errors.
    """

    def __init__(self, group: str, noun: str) -> None:
        self.group = group
        self.noun = noun
        self._registered: dict[str, Any] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted({*self._entry_points, *self._registered})

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: register a class under `name`.

        Raises:
            ValueError: if the name is taken, is not one word, or has unprintable characters.
        """
        if clean(name) != name:
            raise ValueError(f"{name!r} cannot be the name of a {self.noun}: it has characters "
                             "that are not printable")

        def add(cls: T) -> T:
            if name.split() != [name]:
                raise ValueError(f"the name of a {self.noun} must be one word, not {name!r}")
            if name in self._registered or name in self._entry_points:
                raise ValueError(f"there is a {self.noun} {name!r} already")
            self._registered[name] = cls
            return cls
        return add

    def check(self, name: str) -> None:
        """Raise UserError with the nearest known name if `name` is unknown."""
        if self._known(name) is None:
            choose("", self.noun, name, self.names())

    def load(self, name: str) -> Any:
        """The object under `name`; imports its module.

        Raises:
            UserError: if the name is unknown, or the import raises anything.
        """
        self.check(name)
        known = self._known(name) or name
        if known != name:
            return partial(self.load(known), name=name)
        if name in self._registered:
            return self._registered[name]
        point = self._entry_points[name]
        try:
            return point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit: a package must not end the command
            raise UserError(f"{self.noun} {name!r} ({point.value}) does not load: "
                            f"{name_and_text(error)}{raised_at(error)}") \
                from error

    def _known(self, name: str) -> str | None:
        """The registered name that `name` means: itself, or one that ends in `*`; None if neither.
        """
        names = self.names()
        return name if name in names else next(
            (known for known in names if known.endswith("*") and name.startswith(known[:-1])), None)

    def home(self, name: str) -> str | Path:
        """The module or the source file that defines the object under `name`."""
        self.check(name)
        known = self._known(name) or name
        if known in self._registered:
            return Path(inspect.getsourcefile(self._registered[known]) or "")
        return self._entry_points[known].value.partition(":")[0].strip()

    def signature(self, name: str) -> Signature:
        """The signature of the class under `name`, read from its source text if that suffices.

        Raises:
            UserError: if the name is unknown or does not name a class.
        """
        self.check(name)
        if name in self._entry_points:
            signature = read_signature(self._entry_points[name])
            if signature is not None:
                return signature
        cls = self.load(name)
        if not inspect.isclass(cls):
            raise UserError(f"{self.noun} {name!r} is not a class: {cls!r}")
        return inspect_signature(cls)


METHODS = Registry("tta_apm.methods", "method")
DATASETS = Registry("tta_apm.datasets", "data set")
# Functions that build a network; CLASSIFIER.MODEL takes their names.
NETWORKS = Registry("tta_apm.backbones", "network")
# Functions that turn tables into text, for `tta-apm export`.
FORMATS = Registry("tta_apm.formats", "format")


def network_home(model: str) -> str | Path | None:
    """The file or module of the function that CLASSIFIER.MODEL names; None if it names no function
    (but e.g. a model of timm)."""
    if model in NETWORKS.names():
        return NETWORKS.home(model)
    module, colon, name = model.rpartition(":")
    if not colon or not name.isidentifier() or not module:
        return None
    return Path(module) if module.endswith(".py") else module
