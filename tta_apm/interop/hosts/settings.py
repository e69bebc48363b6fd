"""Settings: our methods' names and sections inside a host's config. Imports no torch."""

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
# Sections of backbones of ours: the user names a model and weights as in our own configs. Where
# MODEL is empty the host's own network is used, if it has one of that kind.
EXTRA: dict[str, dict[str, Any]] = {
    name.upper(): {**kind.section, "MODEL": "", "WEIGHTS": ""}
    | ({"TEMPLATES": "auto"} if kind.has_prompts else {}) for name, kind in PACKAGED.items()}
_PAIR = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)?")


def our_names(taken: Container[str]) -> dict[str, str]:
    """The names of our methods as a host shall know them -> as our registry knows them.

    Args:
        taken: names of the host's methods and sections; a name that is among them gets a prefix.
    """
    return {PREFIX + name if name in taken or name.upper() in taken else name: name
            for name in METHODS.names()}


def extend(cfg: CfgNode, names: Mapping[str, str]) -> None:
    """Make our keys legal in a host's config.

    They are the sections of our methods, from their signatures, those of EXTRA, and PLUGINS. A
    section that the host has too keeps its keys beside ours.

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
    """Import what PLUGINS names in KEY VALUE pairs or in the host's config file.

    It happens before the names of methods are told to the host.
    """
    found = _read(file).get(PLUGINS, []) if file else []
    for word, value in zip(words, words[1:]):
        if word == PLUGINS:
            found = yaml.safe_load(value)
    for plugin in [found] if isinstance(found, str) else found:
        import_plugin(plugin)


def hyper_parameters(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a method that its section holds."""
    return {key.lower(): value for key, value in section.items()}


def take_pairs(words: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Part a command line into KEY VALUE pairs of sections in `known`, and the rest.

    For hosts whose own command line takes no such pairs. A word in capitals is a key unless it is
    the value of an option.

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
            raise UserError(f"{word} has no value: settings come as KEY VALUE pairs")
        pairs += [word, value]
    return pairs, rest


def check_key(cfg: Mapping[str, Any], key: str) -> None:
    """UserError with the nearest known one for a KEY or SECTION.KEY that a config has not."""
    section, _, name = key.partition(".")
    if section not in cfg:
        raise UserError(f"unknown key {key!r}: {nearest(section, cfg)}")
    if name and name not in cfg[section]:
        raise UserError(f"unknown key {key!r}: {nearest(name, cfg[section])}")


def check_file(cfg: Mapping[str, Any], file: str | Path) -> None:
    """UserError with the nearest known one for a key of a host's config file."""
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
    """The value of --option in a command line, None where it is not there."""
    for word, after in zip(words, [*words[1:], None]):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def describe(name: str, backbone: str, keywords: Mapping[str, Any]) -> str:
    """What a log shall say of a method of ours, for `tta-apm import` to read again."""
    return f"tta-apm runs {name} over {backbone}: {json.dumps(dict(keywords), sort_keys=True)}"
