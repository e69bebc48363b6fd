"""Settings: our methods' names and sections inside a host's config. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode

from tta_apm.backbones.build import PACKAGED
from tta_apm.errors import UserError, nearest
from tta_apm.registry import METHODS

PREFIX = "tta_apm_"
# Sections of the backbones that a host does not bring: all kinds but classifiers. The user names a
# model and weights as in our own configs.
EXTRA: dict[str, dict[str, str]] = {
    name.upper(): {"MODEL": "", "WEIGHTS": ""} | ({"TEMPLATES": "auto"} if kind.has_prompts else {})
    for name, kind in PACKAGED.items() if name != "classifier"}
_PAIR = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)?")


def our_names(taken: Container[str]) -> dict[str, str]:
    """The names of our methods as a host shall know them -> as our registry knows them.

    Args:
        taken: names of the host's methods and sections; a name that is among them gets a prefix.
    """
    return {PREFIX + name if name in taken or name.upper() in taken else name: name
            for name in METHODS.names()}


def sections(names: Mapping[str, str], taken: Container[str] = ()) -> dict[str, CfgNode]:
    """The sections that legalise our keys: of our methods, from their signatures, and EXTRA.

    Args:
        names: see our_names.
        taken: sections that the host has; they stay as they are.
    """
    found = {name.upper(): METHODS.signature(ours).settings for name, ours in names.items()}
    found |= {name: extra for name, extra in EXTRA.items() if name not in taken}
    return {name: CfgNode({key.upper(): list(value) if isinstance(value, tuple) else value
                           for key, value in settings.items()})
            for name, settings in found.items()}


def hyper_parameters(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a method that its section holds."""
    return {key.lower(): value for key, value in section.items()}


def take_pairs(words: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Part a command line into KEY VALUE pairs of sections in `known`, and the rest.

    For hosts whose own command line takes no such pairs. UserError if a pair has no value.
    """
    pairs: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if not _PAIR.fullmatch(word) or word.split(".")[0] not in known:
            rest.append(word)
            continue
        value = next(left, None)
        if value is None:
            raise UserError(f"{word} has no value: settings come as KEY VALUE pairs")
        pairs += [word, value]
    return pairs, rest


def merge(cfg: CfgNode, pairs: Sequence[str]) -> None:
    """Set KEY VALUE pairs in `cfg` as yacs does.

    Raises:
        UserError: for an unknown key or a value of a wrong type.
    """
    for key, value in zip(pairs[::2], pairs[1::2]):
        section, _, name = key.partition(".")
        if name and name not in cfg[section]:
            raise UserError(f"unknown key {key!r}: {nearest(name, cfg[section])}")
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            raise UserError(f"{key} {value}: {error}") from error


def describe(name: str, backbone: str, keywords: Mapping[str, Any]) -> str:
    """What a log shall say of a method of ours, for `tta-apm import` to read again."""
    return f"tta-apm runs {name} over {backbone}: {json.dumps(dict(keywords), sort_keys=True)}"
