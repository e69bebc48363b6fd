"""Registry: names of methods and data sets, from entry points and from a decorator.

A config is checked against the signatures of the methods it names before anything heavy is
imported: a signature is read from the source text where that is possible.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from tta_apm.errors import UserError, choose, name_and_text, raised_at
from tta_apm.names import clean

T = TypeVar("T")

# Keywords of a constructor that a run sets itself, so that they are no keys of a config.
RUN_KEYWORDS = frozenset({"seed", "source"})
# Types of the class attributes that a signature tells.
PLAIN = (str, int, float, bool)


@dataclass(frozen=True)
class Signature:
    """What can be known of a registered class without building it."""

    defaults: dict[str, Any]  # keyword-only parameters of the constructor and their defaults
    annotations: dict[str, str]  # of those that have one, as text
    attributes: dict[str, Any]  # class attributes of PLAIN types
    source: Path  # the file that defines it

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword-only parameters that are keys of a config."""
        return {k: v for k, v in self.defaults.items() if k not in RUN_KEYWORDS}

    @property
    def needs(self) -> str:
        """The kind of backbone that a method takes: see Method.needs."""
        return self.attributes.get("needs", "classifier")

    @property
    def scope(self) -> str:
        """What a method's result for an image depends on: see Method.scope."""
        return self.attributes.get("scope", "image")


class Registry:
    """Objects of one kind under names: of entry points of `group`, or given to `register`.

    A name that ends in `*`, such as "wds/*", stands for all that begin so: what `load` gives for
    them takes the full name as its keyword `name`.
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
        """Class decorator: make a class known under `name`.

        ValueError if the name is taken, or has signs that a terminal obeys or does not show.
        """
        if clean(name) != name:
            raise ValueError(f"{name!r} is no name of a {self.noun}: letters and signs that can be "
                             "seen make one")

        def add(cls: T) -> T:
            if name.split() != [name]:
                raise ValueError(f"the name of a {self.noun} is one word, not {name!r}")
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
        """The object under `name`; imports its module. UserError if it is unknown or broken."""
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
        except BaseException as error:  # SystemExit, too: a package of others ends no command
            raise UserError(f"{self.noun} {name!r} ({point.value}) does not load: "
                            f"{name_and_text(error)}{raised_at(error)}") \
                from error

    def _known(self, name: str) -> str | None:
        """The name that `name` is known under: itself, or one that ends in `*`."""
        names = self.names()
        return name if name in names else next(
            (known for known in names if known.endswith("*") and name.startswith(known[:-1])), None)

    def home(self, name: str) -> str | Path:
        """The module, or the source file, that defines what is known as `name`."""
        self.check(name)
        known = self._known(name) or name
        if known in self._registered:
            return Path(inspect.getsourcefile(self._registered[known]) or "")
        return self._entry_points[known].value.partition(":")[0].strip()

    def signature(self, name: str) -> Signature:
        """The signature of the class under `name`, without importing it where its text suffices."""
        self.check(name)
        if name in self._entry_points:
            signature = _read_signature(self._entry_points[name])
            if signature is not None:
                return signature
        cls = self.load(name)
        if not inspect.isclass(cls):
            raise UserError(f"{self.noun} {name!r} is no class: {cls!r}")
        return _inspect_signature(cls)


@cache
def _read_signature(point: EntryPoint) -> Signature | None:
    """The signature from the source text, None if only an import can tell."""
    module, _, qualified_name = point.value.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit, GeneratorExit):  # of packages around it: `load` will tell
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    source = Path(spec.origin)
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    node = classes.get(qualified_name.strip())
    if node is None:
        return None
    constructor = next((item for item in node.body if isinstance(item, ast.FunctionDef)
                        and item.name == "__init__"), None)
    if constructor is None:  # it may inherit one that has keywords
        return None
    try:
        defaults = {argument.arg: ast.literal_eval(default)
                    for argument, default in zip(constructor.args.kwonlyargs,
                                                 constructor.args.kw_defaults)
                    if default is not None}
    except (TypeError, ValueError):  # a default that is an expression
        return None
    if len(defaults) < len(constructor.args.kwonlyargs):
        return None
    attributes = {}
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if isinstance(target, ast.Name) and isinstance(item, (ast.Assign, ast.AnnAssign)):
            try:
                value = ast.literal_eval(item.value)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                continue
            if isinstance(value, PLAIN):
                attributes[target.id] = value
    if _may_inherit(node, attributes):
        return None
    annotations = {argument.arg: ast.unparse(argument.annotation)
                   for argument in constructor.args.kwonlyargs if argument.annotation}
    return Signature(defaults, annotations, attributes, source)


def _may_inherit(node: ast.ClassDef, attributes: dict[str, Any]) -> bool:
    """Whether a base class, other than Method itself, may set what the class's own text leaves."""
    wanted = {"needs", "scope"}
    if attributes.get("scope") == "stream":
        wanted.add("survives")
    bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
    return not wanted <= attributes.keys() and bases != {"Method"}


def _inspect_signature(cls: Any) -> Signature:
    defaults, annotations = {}, {}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise UserError(f"{cls.__qualname__}: keyword {parameter.name!r} needs a default")
            defaults[parameter.name] = parameter.default
            if parameter.annotation is not parameter.empty:
                annotations[parameter.name] = inspect.formatannotation(parameter.annotation)
    attributes = {name: getattr(cls, name) for name in dir(cls)
                  if isinstance(inspect.getattr_static(cls, name), PLAIN)}
    return Signature(defaults, annotations, attributes, Path(inspect.getsourcefile(cls) or ""))


METHODS = Registry("tta_apm.methods", "method")
DATASETS = Registry("tta_apm.datasets", "data set")
# Functions that make a network: CLASSIFIER.MODEL takes their names.
NETWORKS = Registry("tta_apm.backbones", "network")
# Functions that turn tables into a text.
FORMATS = Registry("tta_apm.formats", "format")


def network_home(model: str) -> str | Path | None:
    """The file or module of the user's function that CLASSIFIER.MODEL names, else None."""
    if model in NETWORKS.names():
        return NETWORKS.home(model)
    module, colon, name = model.rpartition(":")
    if not colon or not name.isidentifier() or not module:
        return None
    return Path(module) if module.endswith(".py") else module
