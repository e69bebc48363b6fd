"""Layers: parse the overrides of a command line, and merge one layer of a config into another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tta_apm.config import files
from tta_apm.config.values import Type, convert, shown
from tta_apm.config.written import Word, shortened, word_of
from tta_apm.errors import UserError, nearest
from tta_apm.registry import METHODS


def parse_overrides(overrides: Sequence[str], where: str) -> dict[str, Any]:
    """KEY VALUE pairs as a tree of sections: APM.STEPS 30 is {"APM": {"STEPS": Word("30")}}.

    Args:
        where: the source of the overrides, for errors.

    Raises:
        UserError: if a key has no value or is given twice, or if a section is set both as a whole
            and in part.
    """
    if len(overrides) % 2:
        raise UserError(f"{where}: overrides come as KEY VALUE pairs, but {overrides[-1]!r} has no "
                        "value")
    tree: dict[str, Any] = {}
    for key, text in zip(overrides[::2], overrides[1::2]):
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if isinstance(node, Word):
                raise UserError(f"{key!r} sets a key of {section!r}, which is set to {node.text!r} "
                                "as a whole: give one of the two")
        if isinstance(node.get(leaf), dict):
            raise UserError(f"{key!r} is set to {text!r} as a whole, after a key of it was set: "
                            "give one of the two")
        if leaf in node:
            raise UserError(f"{where}: {key} is given twice: leave one out")
        node[leaf] = word_of(text)
    return tree


def merge(tree: Mapping[str, Any], layer: Mapping[str, Any], types: Mapping[str, Any],
          where: str, prefix: str = "") -> dict[str, Any]:
    """A copy of `tree` with the values of `layer`, converted to the types of their keys.

    Args:
        where: the source of the layer, for errors.
        prefix: the dotted name of the section that `tree` is, e.g. "APM."; "" at the top.

    Raises:
        UserError: for an unknown key or a value of the wrong type.
    """
    merged = dict(tree)
    for key, value in layer.items():
        if key not in types:
            raise UserError(f"{where}: unknown key {shortened(prefix + key)!r}: "
                            f"{_nearest_key(key, types)}")
        name = f"{where}: {prefix + key}"
        if isinstance(types[key], Type):
            merged[key] = convert(value, types[key], name)
            continue
        if isinstance(value, Word) and value.text.startswith("{"):
            value = files.parse(value.text, name)
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is a section and takes KEY: value pairs, not {shown(value)}")
        merged[key] = merge(tree[key], value, types[key], where, f"{prefix}{key}.")
    return merged


def _nearest_key(key: str, known: Mapping[str, Any]) -> str:
    sections = {name.upper() for name in METHODS.names()} if "METHODS" in known else set()
    return nearest(key, {*known, *sections})
