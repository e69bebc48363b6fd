"""Config: the keys of a run with their defaults, and how a file becomes a frozen yacs node.

A method's section is derived from its signature: `Tent(backbone, *, lr=1e-3, steps=1)` gives
`TENT: {LR: 0.001, STEPS: 1}`. Loading and checking a config does not import torch.
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
    """Load and check a config.

    Values of the file override those of its BASE files; KEY VALUE overrides come last.

    Returns:
        A frozen node that holds every key of the run.

    Raises:
        UserError: if a file is not found or malformed, a key or name is unknown, or a value has
            the wrong type or is out of range.
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
    """As `load`, for another command than `run`: its keys and defaults are `known`.

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
    """The contents of the files and of the command line, each with its source; later ones win."""
    return [*read_chain(find_file(Path(path))),
            (COMMAND_LINE, parse_overrides(overrides, COMMAND_LINE))]


def _import_plugins(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    plugins: list[str] = []
    for where, layer in layers:
        if "PLUGINS" in layer:
            plugins = convert(layer["PLUGINS"], CORE_TYPES["PLUGINS"], f"{where}: PLUGINS")
    for plugin in plugins:
        import_plugin(plugin)
