"""Config: every key of a run with its default, and how a file becomes a frozen yacs node.

A method's section is derived from its signature: `Tent(backbone, *, lr=1e-3, steps=1)` gives
`TENT: {LR: 0.001, STEPS: 1}`. Nothing heavy is imported to check a config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tta_apm.config.files import find_file, read_chain
from tta_apm.config.keys import CORE, CORE_TYPES, check, types_of
from tta_apm.config.layers import merge, parse_overrides
from tta_apm.config.rows import (
    Row, check_rows, configured_kinds, configured_methods, rows, section, section_types)
from tta_apm.config.values import convert
from tta_apm.plugins import import_plugin

__all__ = ["COMMAND_LINE", "Row", "find_file", "load", "load_keys", "rows"]

COMMAND_LINE = "the command line"


def load(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a config file, the chain of its BASE files and KEY VALUE overrides, each over the ones
    before, into a checked, frozen node.

    Raises:
        UserError: for a missing or malformed file, an unknown key or name, a wrong type.
    """
    layers = _layers(path, overrides)
    _import_plugins(layers)
    methods = configured_methods(layers)
    kinds = configured_kinds(methods, layers)
    merged = {**CORE, **kinds, **{name.upper(): section(name) for name in methods}}
    types = {**CORE_TYPES, **types_of(kinds),
             **{name.upper(): section_types(name) for name in methods}}
    for where, layer in layers:
        merged = merge(merged, layer, types, where)
    if not merged["OUTPUT_DIR"]:
        merged["OUTPUT_DIR"] = f"results/{merged['DATASET']}"
    cfg = CfgNode(merged)
    check(cfg)
    check_rows(cfg)
    cfg.freeze()
    return cfg


def load_keys(path: str | Path, overrides: Sequence[str], known: Mapping[str, Any]) -> CfgNode:
    """Read the config of another command than a sweep, whose keys and defaults are `known`.

    Raises:
        UserError: as `load`.
    """
    merged = dict(known)
    for where, layer in _layers(path, overrides):
        merged = merge(merged, layer, types_of(known), where)
    cfg = CfgNode(merged)
    cfg.freeze()
    return cfg


def _layers(path: str | Path, overrides: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """What is written in the files and on the command line; later ones rule."""
    return [*read_chain(find_file(Path(path))),
            (COMMAND_LINE, parse_overrides(overrides, COMMAND_LINE))]


def _import_plugins(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    plugins: list[str] = []
    for where, layer in layers:
        if "PLUGINS" in layer:
            plugins = convert(layer["PLUGINS"], CORE_TYPES["PLUGINS"], f"{where}: PLUGINS")
    for plugin in plugins:
        import_plugin(plugin)
