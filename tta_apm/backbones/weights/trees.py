"""trees: the tensors in the contents of a file of weights, however they are nested."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tta_apm.backbones.weights.archives import Content
from tta_apm.backbones.weights.inert import Inert, Lazy, Malformed, Named, finished

MAX_DEPTH = 100  # of nested containers
MAX_VALUES = 1_000_000

Numbers = Tensor | Lazy
Entry = Numbers | Inert


def state_dicts(content: Content) -> dict[str, dict[str, Entry]]:
    """The state dicts in a file: tensors by name, for each container that has some.

    Returns:
        State dicts by the path of their container, e.g. "model/state_dict", or "" for the whole
        file. The modules of a pickled network do not count as containers; their names are joined
        by dots.

    Raises:
        Malformed: for a file of too many values, or one that contains itself.
    """
    found: dict[str, dict[str, Entry]] = {}
    waiting: list[tuple[str, str, Any, int]] = [("", "", content.tree, 0)]
    for _ in range(MAX_VALUES):
        if len(waiting) > MAX_VALUES:
            break
        if not waiting:
            return {path: entries for path, entries in found.items()
                    if any(not isinstance(entry, Inert) for entry in entries.values())}
        path, prefix, value, depth = waiting.pop()
        value = finished(value)
        if depth > MAX_DEPTH:
            raise Malformed("it is nested too deeply, or contains itself")
        if isinstance(value, (Tensor, Lazy)):
            _put(found, path, prefix, value)
            continue
        parts = _module_parts(value)
        if parts is not None:
            waiting += [(path, f"{prefix}{name}.", part, depth + 1) for name, part in parts]
            continue
        if isinstance(value, Inert) and prefix:
            _put(found, path, prefix, value)
        where = "/".join(filter(None, (path, prefix.removesuffix("."))))
        for name, part in _items(value):
            part = finished(part)
            if isinstance(part, (Tensor, Lazy, Inert)):
                waiting.append((where, f"{name}.", part, depth + 1))
            elif isinstance(part, (dict, list, tuple)):
                inside = "/".join(filter(None, (where, str(name))))
                waiting.append((inside, "", part, depth + 1))
    raise Malformed(f"it holds more than {MAX_VALUES:,} values")


def _put(found: dict[str, dict[str, Entry]], path: str, prefix: str, value: Entry) -> None:
    entries, name = found.setdefault(path, {}), prefix.removesuffix(".")
    if name in entries:
        raise Malformed(f"it holds two entries called {name!r}")
    entries[name] = value


def _module_parts(value: Any) -> list[tuple[str, Any]] | None:
    """The tensors and modules of a pickled or TorchScript module; None for other values."""
    state = value.state if isinstance(value, Inert) else None
    if not isinstance(state, dict):
        return None
    if isinstance(state.get("_modules"), dict) and isinstance(state.get("_parameters"), dict):
        return [(str(name), part) for key in ("_parameters", "_buffers", "_modules")
                for name, part in (state.get(key) or {}).items() if part is not None]
    if str(value.kind).startswith("__torch__."):
        return [(str(name), part) for name, part in state.items()
                if isinstance(part, (Tensor, Lazy, Inert))]
    return None


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, Inert):  # e.g. a scheduler, or a dict of a subclass
        state = value.state if isinstance(value.state, dict) else {}
        return [*state.items(), *value.items.items(), *enumerate(value.rest)]
    return []


def plain(content: Content) -> Any:
    """The contents with the values of all tensors, for a library that loads them itself."""
    made: dict[int, Any] = {}

    def make(value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH or len(made) > MAX_VALUES:
            raise Malformed("it is nested too deeply, or contains itself or too many values")
        if id(value) not in made:
            made[id(value)] = remake(finished(value), depth)
        return made[id(value)]

    def remake(value: Any, depth: int) -> Any:
        if isinstance(value, Lazy):
            return value.read()
        if isinstance(value, dict):
            return {key: make(part, depth + 1) for key, part in value.items()}
        if isinstance(value, (list, tuple)) and not isinstance(value, Named):
            return type(value)(make(part, depth + 1) for part in value)
        return value
    return make(content.tree, 0)
