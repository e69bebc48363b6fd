"""Files of configs: found, read with each scalar as it is written, followed along their BASE.

No key stands twice in one, and nothing in them runs.
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

# Far more than a config needs, far fewer than aliases of aliases make of a few lines.
MOST_VALUES = 10_000
DEEPEST = 50
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in (
    "null", "bool", "int", "float", "str", "seq", "map", "timestamp", "value"))
# The key `<<`, which takes over the pairs of an alias.
MERGE = "tag:yaml.org,2002:merge"


def find_file(path: Path) -> Path:
    """Resolve a config's path; cfgs/ is an alias of configs/, of the installed ones too."""
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
    """The contents of the file and of the BASE that it names, and that one names: deepest first."""
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
        UserError: for a file that is not UTF-8, not YAML, holds something else than KEY: value
            pairs, a key twice, or more values than a config needs.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: save it as UTF-8") from error
    return parse(text, str(file))


def parse(text: str, where: str) -> dict[str, Written]:
    """As `read`, of a text."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {explain(error)}") from error
    except RecursionError as error:
        raise UserError(f"{where} is not valid YAML: too many brackets in one another") from error
    if node is None:
        return {}
    content = _Reader(where).value(node, 0)
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "a single value"
        raise UserError(f"{where} must hold KEY: value pairs, not {kind}")
    return content


class _Reader:
    """Turns nodes into values, an alias into what it stands for."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.num_values = 0

    def value(self, node: yaml.Node, depth: int) -> Written:
        self.num_values += 1
        if self.num_values > MOST_VALUES or depth > DEEPEST:
            raise UserError(f"{self.where} holds more than {MOST_VALUES:,} values, or lists in "
                            f"lists over {DEEPEST} deep, once its aliases are followed")
        if node.tag not in PLAIN_TAGS:
            raise UserError(f"{self.where} is not valid YAML: line {_line(node)}: a config knows "
                            f"no tag {node.tag!r}")
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
