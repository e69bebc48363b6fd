"""Settings: the names and sections of this package's methods in a host's config. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from tta_apm.backbones.build import PACKAGED
from tta_apm.errors import UserError, nearest
from tta_apm.plugins import import_plugin
from tta_apm.registry import METHODS

PREFIX = "tta_apm_"
PLUGINS = "PLUGINS"
# Sections of this package's backbones, with the keys of its own configs. If MODEL is empty, the
# host's own network is used, if it has one of that kind.
EXTRA: dict[str, dict[str, Any]] = {
    name.upper(): {**kind.section, "MODEL": "", "WEIGHTS": ""}
    | ({"TEMPLATES": "auto"} if kind.has_prompts else {}) for name, kind in PACKAGED.items()}
_PAIR = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)?")


def our_names(taken: Container[str]) -> dict[str, str]:
    """This package's methods: their names in a host -> their names in the registry.

    Args:
        taken: names of the host's methods and sections; names that are taken get a prefix.
    """
    return {PREFIX + name if name in taken or name.upper() in taken else name: name
            for name in METHODS.names()}


def extend(cfg: CfgNode, names: Mapping[str, str]) -> None:
    """Add this package's keys to a host's config.

    They are the sections of the methods, read from their signatures, those of EXTRA, and PLUGINS.
    If the host has a section of the same name, its keys are kept.

    Args:
        names: see our_names.
    """
    found = {name.upper(): METHODS.signature(ours).settings for name, ours in names.items()}
    for name, section in {**found, **EXTRA}.items():
        if name not in cfg:
            cfg[name] = CfgNode()
        for key, value in section.items():
            cfg[name].setdefault(key.upper(), list(value) if isinstance(value, tuple) else value)
    cfg[PLUGINS] = []


def import_plugins(words: Sequence[str], file: str | Path | None = None) -> None:
    """Import the plugins that PLUGINS names in KEY VALUE pairs or in the host's config file.

    To be called before `our_names`.
    """
    found = _read(file).get(PLUGINS, []) if file else []
    for word, value in zip(words, words[1:]):
        if word == PLUGINS:
            found = yaml.safe_load(value)
    for plugin in [found] if isinstance(found, str) else found:
        import_plugin(plugin)


def hyper_parameters(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a method, from its section of the config."""
    return {key.lower(): value for key, value in section.items()}


def take_pairs(words: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Split a command line into KEY VALUE pairs of sections in `known`, and the rest.

    For hosts whose own command line has no such pairs. A word in capitals is a key unless it is the
    value of an option.

    Raises:
        UserError: if a pair has no value, or for a key of an unknown section.
    """
    pairs: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        of_option = bool(rest) and rest[-1].startswith("--") and "=" not in rest[-1]
        if of_option or not _PAIR.fullmatch(word):
            rest.append(word)
            continue
        check_key(known, word)
        value = next(left, None)
        if value is None:
            raise UserError(f"{word} has no value: settings are KEY VALUE pairs")
        pairs += [word, value]
    return pairs, rest


def check_key(cfg: Mapping[str, Any], key: str) -> None:
    """Raise UserError, with the nearest known key, for a KEY or SECTION.KEY not in a config."""
    section, _, name = key.partition(".")
    if section not in cfg:
        raise UserError(f"unknown key {key!r}: {nearest(section, cfg)}")
    if name and name not in cfg[section]:
        raise UserError(f"unknown key {key!r}: {nearest(name, cfg[section])}")


def check_file(cfg: Mapping[str, Any], file: str | Path) -> None:
    """Raise UserError, with the nearest known key, for an unknown key in a host's config file."""
    for section, values in _read(file).items():
        check_key(cfg, section)
        for name in values if isinstance(values, dict) else ():
            check_key(cfg, f"{section}.{name}")


def _read(file: str | Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config {file}: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def merge(cfg: CfgNode, pairs: Sequence[str]) -> None:
    """Set KEY VALUE pairs in `cfg` as yacs does.

    Raises:
        UserError: for an unknown key or a value of a wrong type.
    """
    for key, value in zip(pairs[::2], pairs[1::2]):
        check_key(cfg, key)
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            raise UserError(f"{key} {value}: {error}") from error


def value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of --option in a command line, None without it."""
    for word, after in zip(words, [*words[1:], None]):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def describe(name: str, backbone: str, keywords: Mapping[str, Any]) -> str:
    """The line for a host's log that describes a method, for `tta-apm import` to parse."""
    return f"tta-apm runs {name} over {backbone}: {json.dumps(dict(keywords), sort_keys=True)}"
