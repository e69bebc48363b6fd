"""Rows: the entries of METHODS, and the sections of a config that come from signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from tta_apm.backbones.build import KINDS, find_kind
from tta_apm.config.keys import CORE, CORE_TYPES, types_of
from tta_apm.config.layers import merge, parse_overrides
from tta_apm.config.values import check_finite, convert, type_of
from tta_apm.config.written import split
from tta_apm.errors import UserError, choose
from tta_apm.registry import METHODS
from tta_apm.signature import Signature

# Kinds of backbone for a method that needs a classifier. The image tower of a CLIP is a classifier
# whose head are the text features.
CLASSIFIERS = ("classifier", "clip")


@dataclass(frozen=True)
class Row:
    """One entry of METHODS."""

    text: str  # as in the config, with single spaces
    method: str
    hyper_parameters: dict[str, Any]
    signature: Signature
    backbone: str = ""  # the kind that BACKBONE chooses in the entry, "" without it

    @property
    def needs(self) -> str:
        """The kind of backbone that the row runs on."""
        return self.backbone or self.signature.needs

    @property
    def scope(self) -> str:
        """See Method.scope."""
        return self.signature.scope

    @property
    def survives(self) -> str:
        """The state that is carried from image to image, e.g. "weights" or "nothing"."""
        if self.scope != "stream":
            return "nothing"
        return self.signature.attributes.get("survives") or "state"


def rows(cfg: CfgNode) -> list[Row]:
    """The rows of METHODS, in order, with all their hyper-parameters."""
    return [_row(entry, cfg) for entry in cfg.METHODS]


def _row(entry: str, cfg: CfgNode) -> Row:
    if not entry.strip():
        raise UserError("METHODS: an entry is empty: name a method")
    name, *overrides = words = split(entry, " ")
    METHODS.check(name)
    signature = METHODS.signature(name)
    where = f"METHODS: {entry!r}"
    chosen = parse_overrides(overrides, where)
    backbone = _backbone(chosen, name, signature, where)
    section = merge(cfg[name.upper()], chosen, section_types(name), where)
    hyper_parameters = {key: section[key.upper()] for key in signature.settings}
    return Row(" ".join(words), name, hyper_parameters, signature, backbone)


def _backbone(chosen: dict[str, Any], name: str, signature: Signature, where: str) -> str:
    """Remove BACKBONE from `chosen` and return the kind that it names; "" without it."""
    if "BACKBONE" not in chosen or "backbone" in signature.settings:
        return ""
    kinds = CLASSIFIERS if signature.needs == "classifier" else tuple(
        kind for kind in (signature.needs, signature.also_takes) if kind)
    if len(kinds) == 1:
        raise UserError(f"{where}: {name} runs on one kind of backbone, {signature.needs!r}: "
                        "leave BACKBONE out")
    kind: str = convert(chosen.pop("BACKBONE"), type_of("BACKBONE", "", ""), f"{where}: BACKBONE")
    choose(where, "BACKBONE", kind, kinds)
    return kind


def check_rows(cfg: CfgNode) -> None:
    """Raise UserError for an invalid entry of METHODS, or one that equals another."""
    checked: list[Row] = []
    for entry in cfg.METHODS:
        row = _row(entry, cfg)
        for other, its_entry in zip(checked, cfg.METHODS):
            if ((row.method, row.needs, row.hyper_parameters)
                    == (other.method, other.needs, other.hyper_parameters)):
                raise UserError(f"METHODS: {its_entry!r} and {entry!r} are the same row, with "
                                "equal hyper-parameters: leave one out")
        checked.append(row)
        if row.needs not in KINDS.names():
            raise UserError(f"method {row.method!r} needs an unknown kind of backbone: "
                            f"{row.needs!r}; kinds: {', '.join(KINDS.names())}")


def configured_methods(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The names of the methods in METHODS or with a section in a layer; each gets a section."""
    wanted = {key for _, layer in layers for key in layer}
    entries = list(CORE["METHODS"])
    for where, layer in layers:
        if "METHODS" in layer:
            entries += convert(layer["METHODS"], CORE_TYPES["METHODS"], f"{where}: METHODS")
    asked = {word for entry in entries for word in entry.split()[:1]}
    wanted |= {name.upper() for name in asked}
    names = METHODS.names()
    for name in asked.intersection(names):
        section = name.upper()
        rivals = [other for other in names if other.upper() == section and other != name]
        if section in CORE or name in KINDS.names() or rivals:
            raise UserError(f"method {name!r} would share the section {section} with "
                            f"{f'method {rivals[0]!r}' if rivals else 'a key of all configs'}: "
                            "give it another name")
    return [name for name in names if name.upper() in wanted and name.upper() not in CORE]


def configured_kinds(methods: Sequence[str], layers: Sequence[tuple[str, Mapping[str, Any]]]
                     ) -> dict[str, dict[str, Any]]:
    """The sections of backbone kinds from other packages, if a method needs the kind or a layer
    configures it."""
    wanted = {key for _, layer in layers for key in layer}
    wanted |= {METHODS.signature(name).needs.upper() for name in methods}
    return {name.upper(): dict(find_kind(name).section) for name in KINDS.names()
            if name.upper() in wanted and name.upper() not in CORE}


def section(name: str) -> dict[str, Any]:
    """The keys of a method's section and their defaults."""
    signature = METHODS.signature(name)
    for key, default in signature.settings.items():
        where = f"method {name!r} ({signature.source}): the default of its keyword {key}"
        if not _is_plain(default):
            raise UserError(f"{where} is of type {type(default).__name__}: a config takes true or "
                            "false, numbers, text, lists of them, or None")
        check_finite(default, where)
    return {key.upper(): list(value) if isinstance(value, tuple) else value
            for key, value in signature.settings.items()}


def _is_plain(value: Any) -> bool:
    """Whether a config and a record can hold `value`."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def section_types(name: str) -> dict[str, Any]:
    """The types of the keys of a method's section."""
    signature = METHODS.signature(name)
    return {key.upper(): types_of(value) if isinstance(value, Mapping)
            else type_of(key.upper(), value, signature.annotations.get(key, ""))
            for key, value in signature.settings.items()}
