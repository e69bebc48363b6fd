"""Signature: the keyword arguments of a registered class, read from its source text if possible.

So a config is checked against its methods without importing torch.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from tta_apm.errors import UserError

# Keywords of a constructor that the run sets; they are not keys of a config.
RUN_KEYWORDS = frozenset({"seed", "source"})
# Types of the class attributes that a signature holds.
PLAIN = (str, int, float, bool)


@dataclass(frozen=True)
class Signature:
    """Keyword arguments and class attributes of a registered class."""

    defaults: dict[str, Any]  # keyword-only parameters of the constructor and their defaults
    annotations: dict[str, str]  # the annotations of those parameters, as text
    attributes: dict[str, Any]  # class attributes of PLAIN types
    source: Path  # the file that defines it

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword-only parameters that are keys of a config, with their defaults."""
        return {k: v for k, v in self.defaults.items() if k not in RUN_KEYWORDS}

    @property
    def needs(self) -> str:
        """See Method.needs."""
        return self.attributes.get("needs", "classifier")

    @property
    def also_takes(self) -> str:
        """See Method.also_takes."""
        return self.attributes.get("also_takes", "")

    @property
    def scope(self) -> str:
        """See Method.scope."""
        return self.attributes.get("scope", "image")


@cache
def read_signature(point: EntryPoint) -> Signature | None:
    """The signature of an entry point's class from its source text; None if that does not suffice,
    e.g. for an inherited constructor."""
    module, _, name = point.value.partition(":")
    source = _source(module)
    node = source and _find_class(source, name.strip())
    if not source or not node:
        return None
    constructor = next((item for item in node.body if isinstance(item, ast.FunctionDef)
                        and item.name == "__init__"), None)
    if constructor is None:  # it may inherit one with keywords
        return None
    keywords, values = constructor.args.kwonlyargs, constructor.args.kw_defaults
    try:
        defaults = {keyword.arg: ast.literal_eval(value)
                    for keyword, value in zip(keywords, values) if value is not None}
    except (TypeError, ValueError):  # a default that is an expression
        return None
    attributes = _attributes(node)
    if len(defaults) < len(keywords) or _may_inherit(node, attributes):
        return None
    annotations = {keyword.arg: ast.unparse(keyword.annotation)
                   for keyword in keywords if keyword.annotation}
    return Signature(defaults, annotations, attributes, source)


def _source(module: str) -> Path | None:
    """The source file of a module, found without importing it; None if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit, GeneratorExit):  # raised by parent packages: `load` reports it
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _find_class(source: Path, name: str) -> ast.ClassDef | None:
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return classes[-1] if classes else None


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    """The class attributes of PLAIN types."""
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
    return attributes


def _may_inherit(node: ast.ClassDef, attributes: dict[str, Any]) -> bool:
    """Whether a base class other than Method may define attributes that the class itself lacks."""
    wanted = {"needs", "scope"}
    if attributes.get("scope") == "stream":
        wanted.add("survives")
    bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
    return not wanted <= attributes.keys() and bases != {"Method"}


def inspect_signature(cls: Any) -> Signature:
    """The signature of an imported class. UserError for a keyword without a default."""
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
