"""Config files: find them, read them, and follow their BASE.

Scalars are kept as they are written (see values.py). A key that occurs twice in a file is an error.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from tta_apm.config.values import Type, convert
from tta_apm.config.written import Scalar, Written
from tta_apm.errors import UserError, explain, nearest, reason

BASE = Type(str, or_none=True, is_path=True)

# No config needs so many; nested YAML aliases can make billions of a few lines.
MAX_VALUES = 10_000
MAX_DEPTH = 50
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in (
    "null", "bool", "int", "float", "str", "seq", "map", "timestamp", "value"))
# The tag of the key `<<`, which merges the pairs of an alias.
MERGE = "tag:yaml.org,2002:merge"


def find_file(path: Path) -> Path:
    """The path of a config file.

    A path that starts with cfgs/ or configs/ is looked up in the folder configs/ of the working
    folder and in the installed configs.

    Raises:
        UserError: if the file is not found; it names the nearest one.
    """
    if path == Path(""):
        raise UserError("no config file is named: give one such as cfgs/digits_c/all.yaml")
    if path.is_file():
        return path
    if path.parts[:1] in (("cfgs",), ("configs",)):
        inside = Path(*path.parts[1:])
        for folder in _config_folders():
            if (folder / inside).is_file():
                return folder / inside
    known = [f"cfgs/{file.relative_to(folder)}" for folder in _config_folders()
             for file in folder.glob("*/*.yaml")]
    raise UserError(f"config file not found: {str(path)!r}: {nearest(str(path), known)}")


def _config_folders() -> list[Path]:
    installed = importlib.util.find_spec("tta_apm_configs")
    locations = installed.submodule_search_locations if installed else None
    return [Path("configs"), *(Path(location) for location in locations or [])]


def read_chain(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The contents of a file and of its chain of BASE files, each with its path, deepest first."""
    layers: list[tuple[str, dict[str, Any]]] = []
    seen = []
    while True:
        content = read(file)
        base = convert(content.pop("BASE", Scalar("")), BASE, f"{file}: BASE")
        layers.insert(0, (str(file), content))
        seen.append(file.resolve())
        if base is None:
            return layers
        base_file = file.parent / base
        if not base_file.is_file():
            raise UserError(f"{file}: BASE file not found: {base_file}")
        if base_file.resolve() in seen:
            raise UserError(f"{file}: its BASE {base_file} is itself built on this file")
        file = base_file


def read(file: Path) -> dict[str, Written]:
    """The keys and values of a file.

    Raises:
        UserError: if the file is not UTF-8 or not YAML, or holds anything but KEY: value pairs, a
            key twice, or more than MAX_VALUES values.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: save it as UTF-8") from error
    return parse(text, str(file))


def parse(text: str, where: str) -> dict[str, Written]:
    """As `read`, for a text; `where` names its source in errors."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {explain(error)}") from error
    except RecursionError as error:
        raise UserError(f"{where} is not valid YAML: its brackets are nested too deep") from error
    if node is None:
        return {}
    content = _Reader(where).value(node, 0)
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "a single value"
        raise UserError(f"{where} must hold KEY: value pairs, not {kind}")
    return content


class _Reader:
    """Turns YAML nodes into values; an alias becomes a copy of its anchor's value."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.num_values = 0

    def value(self, node: yaml.Node, depth: int) -> Written:
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"{self.where} holds more than {MAX_VALUES:,} values, or lists nested "
                            f"more than {MAX_DEPTH} deep, once its aliases are resolved")
        if node.tag not in PLAIN_TAGS:
            raise UserError(f"{self.where} is not valid YAML: line {_line(node)}: unknown tag "
                            f"{node.tag!r}")
        if isinstance(node, yaml.MappingNode):
            return self._pairs(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        return Scalar(node.value, quoted=bool(node.style))

    def _pairs(self, node: yaml.MappingNode, depth: int) -> dict[str, Written]:
        inherited: dict[str, Written] = {}
        pairs: dict[str, Written] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE and isinstance(value_node, yaml.MappingNode):
                inherited |= self._pairs(value_node, depth + 1)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self.where}: line {_line(key_node)}: a key is one word")
            key = key_node.value
            if key in pairs:
                raise UserError(f"{self.where}: {key} is given twice, in lines {lines[key]} and "
                                f"{_line(key_node)}: leave one out")
            lines[key] = _line(key_node)
            pairs[key] = self.value(value_node, depth + 1)
        return inherited | pairs


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
