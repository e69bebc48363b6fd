"""Config: every key of a run with its default, and how a file becomes a frozen yacs node.

A method's section is derived from its signature: `Tent(backbone, *, lr=1e-3, steps=1)` gives
`TENT: {LR: 0.001, STEPS: 1}`. Nothing heavy is imported to check a config. How values are written
stands in `values`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tta_apm import yaml_files

from tta_apm.backbones.kinds import KINDS
from tta_apm.backbones.prompts import template_sets
from tta_apm.data.corruption_constants import CORRUPTIONS, SEVERITIES, SIDES
from tta_apm.data.metrics import METRICS
from tta_apm.data.streams import ORDERS, SETTINGS
from tta_apm.errors import UserError, nearest
from tta_apm.plugins import import_plugin
from tta_apm.registry import DATASETS, METHODS, Signature
from tta_apm.values import (
    Scalar, Type, Word, check_device, check_finite, check_seed, convert, shortened, shown, split,
    type_of, word_of)

CORE: dict[str, Any] = {
    # Rows of the table, in order: a method's name, with KEY VALUE pairs of its own section for a
    # variant: [tent, "apm STEPS 10"].
    "METHODS": ["source"],
    "DATASET": "digits_c",
    # Folder that holds the data sets.
    "DATA_DIR": "data",
    "CORRUPTIONS": list(CORRUPTIONS),
    # Severities 1 to 5; 0 is the clean data set.
    "SEVERITY": [5],
    # Make the corruptions on the fly from the clean images, for a data set that has none.
    "CORRUPT": False,
    # Whose severities CORRUPT means: "cifar" (made for 32 pixels), "imagenet" (224), or "auto" for
    # those of the size nearest to the images', on a logarithmic scale.
    "CORRUPTION_CONSTANTS": "auto",
    # Images per domain: the first ones of the data set's order; -1 takes all.
    "NUM_IMAGES": -1,
    # reset_each_domain, continual (no reset between domains), gradual (continual, severities rise
    # and fall) or mixed_domains (all domains in one stream).
    "SETTING": "reset_each_domain",
    # Of the images in a stream: shuffled, dirichlet (classes correlated in time), sorted by class.
    "ORDER": "shuffled",
    # Concentration for ORDER dirichlet: the smaller, the more correlated.
    "DIRICHLET": 0.1,
    # Each seed shuffles the streams and seeds the methods; the table gives mean and std.
    "SEEDS": [42],
    # Images that a method sees at a time; online methods depend on it.
    "BATCH_SIZE": 200,
    # Prompt templates of CLIP: "auto" is the data set's own ensemble, "single" one template.
    "TEMPLATES": "auto",
    # The backbone of methods that need a classifier: timm/NAME, torchvision/NAME or
    # robustbench/NAME, with the library's pretrained weights or a file. IMAGE_SIZE (in pixels),
    # MEAN and STD (three numbers each, of images in [0,1]) are for a file of which nothing tells
    # them; 0 and [] leave them to the library or to the config beside the file.
    "CLASSIFIER": {"MODEL": "timm/digits_resnet", "WEIGHTS": "digits_resnet.safetensors",
                   "IMAGE_SIZE": 0, "MEAN": [], "STD": []},
    # The backbone of methods that need CLIP: an open_clip name, with a pretrained tag or a file.
    "CLIP": {"MODEL": "digits_clip", "WEIGHTS": "digits_clip.safetensors", "MEAN": [], "STD": []},
    # The backbone of TTT-MAE: a masked autoencoder with its probing head, in one file or in two
    # joined by a comma: encoder_and_decoder.pth,head.pth.
    "MAE": {"MODEL": "digits_mae", "WEIGHTS": "digits_mae.safetensors"},
    # The backbone of TTT: a classifier with a rotation head, trained jointly.
    "ROTATION": {"MODEL": "digits_rotation", "WEIGHTS": "digits_rotation.safetensors"},
    # Folder of the official frost pictures; "" uses the best source that is installed.
    "FROST_DIR": "",
    # "auto" is the first CUDA device if there is one, else the CPU.
    "DEVICE": "auto",
    # What tables print.
    "METRIC": "error",
    # Whether tables show the paper's rows below ours, where it has them for DATASET and SEVERITY.
    "PUBLISHED": False,
    # An ablation of the paper to put beside the rows: TABLE is "" for none, or table_5a, table_5b,
    # table_8 or table_9; ROWS names its row for each of METHODS, "" for none.
    "PAPER": {"TABLE": "", "ROWS": []},
    # Where results go; "" is results/<DATASET>.
    "OUTPUT_DIR": "",
    # Modules or .py files to import first, whose @register methods are then known.
    "PLUGINS": [],
}

# What keys take whose default is an empty list.
EMPTY_LISTS = {"PLUGINS": "list[str]", "ROWS": "list[str]", "MEAN": "list[float]",
               "STD": "list[float]"}
BASE = Type(str, or_none=True, is_path=True)
COMMAND_LINE = "the command line"


@dataclass(frozen=True)
class Row:
    """One entry of METHODS."""

    text: str  # as in the config, spaces folded
    method: str
    hyper_parameters: dict[str, Any]
    signature: Signature

    @property
    def needs(self) -> str:
        return self.signature.needs

    @property
    def scope(self) -> str:
        return self.signature.scope

    @property
    def survives(self) -> str:
        """What lives on from image to image, in words."""
        if self.scope != "stream":
            return "nothing"
        return self.signature.attributes.get("survives") or "state"


def load(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a config file, the chain of its BASE files and KEY VALUE overrides, each over the ones
    before, into a checked, frozen node.

    Raises:
        UserError: for a missing or malformed file, an unknown key or name, a wrong type.
    """
    layers = _layers(path, overrides)
    _import_plugins(layers)
    methods = _methods(layers)
    merged = {**CORE, **{name.upper(): _section(name) for name in methods}}
    types = {**CORE_TYPES, **{name.upper(): _types(name) for name in methods}}
    for where, layer in layers:
        merged = _merge(merged, layer, types, where)
    if not merged["OUTPUT_DIR"]:
        merged["OUTPUT_DIR"] = f"results/{merged['DATASET']}"
    cfg = CfgNode(merged)
    _check(cfg)
    cfg.freeze()
    return cfg


def load_keys(path: str | Path, overrides: Sequence[str], known: Mapping[str, Any]) -> CfgNode:
    """Read the config of another command than a sweep, whose keys and defaults are `known`.

    Raises:
        UserError: as `load`.
    """
    merged = dict(known)
    for where, layer in _layers(path, overrides):
        merged = _merge(merged, layer, _types_of(known), where)
    cfg = CfgNode(merged)
    cfg.freeze()
    return cfg


def rows(cfg: CfgNode) -> list[Row]:
    """The rows that METHODS asks for, each with its hyper-parameters resolved."""
    return [_row(entry, cfg) for entry in cfg.METHODS]


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
    raise UserError(f"no config file {str(path)!r}: {nearest(str(path), known)}")


def _config_folders() -> list[Path]:
    installed = importlib.util.find_spec("tta_apm_configs")
    locations = installed.submodule_search_locations if installed else None
    return [Path("configs"), *(Path(location) for location in locations or [])]


def _layers(path: str | Path, overrides: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """What is written in the files and on the command line; later ones rule."""
    return [*_read_layers(find_file(Path(path))),
            (COMMAND_LINE, _parse_overrides(overrides, COMMAND_LINE))]


def _read_layers(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The contents of the file and of the BASE that it names, and that one names: deepest first."""
    layers: list[tuple[str, dict[str, Any]]] = []
    seen = []
    while True:
        content = yaml_files.read(file)
        base = convert(content.pop("BASE", Scalar("")), BASE, f"{file}: BASE")
        layers.insert(0, (str(file), content))
        seen.append(file.resolve())
        if base is None:
            return layers
        base_file = file.parent / base
        if not base_file.is_file():
            raise UserError(f"{file}: there is no BASE file {base_file}")
        if base_file.resolve() in seen:
            raise UserError(f"{file}: its BASE {base_file} is itself built on this file")
        file = base_file


def _parse_overrides(overrides: Sequence[str], where: str) -> dict[str, Any]:
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


def _import_plugins(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    plugins: list[str] = []
    for where, layer in layers:
        if "PLUGINS" in layer:
            plugins = convert(layer["PLUGINS"], CORE_TYPES["PLUGINS"], f"{where}: PLUGINS")
    for plugin in plugins:
        import_plugin(plugin)


def _methods(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The methods that are asked for or configured; each gets a section."""
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
        if section in CORE or rivals:
            raise UserError(f"method {name!r} would share the section {section} with "
                            f"{f'method {rivals[0]!r}' if rivals else 'a key of all configs'}: "
                            "give it another name")
    return [name for name in names if name.upper() in wanted and name.upper() not in CORE]


def _section(name: str) -> dict[str, Any]:
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
    """Whether a config, and the record of a cell, can hold it."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _types(name: str) -> dict[str, Any]:
    """What the keys of a method's section take."""
    signature = METHODS.signature(name)
    return {key.upper(): _types_of(value) if isinstance(value, Mapping)
            else type_of(key.upper(), value, signature.annotations.get(key, ""))
            for key, value in signature.settings.items()}


def _types_of(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What keys take, and sections of them, by their defaults."""
    return {key: _types_of(value) if isinstance(value, Mapping)
            else type_of(key, value, EMPTY_LISTS.get(key, "")) for key, value in defaults.items()}


def _merge(tree: Mapping[str, Any], layer: Mapping[str, Any], types: Mapping[str, Any],
           where: str, prefix: str = "") -> dict[str, Any]:
    """A copy of `tree` with the values of `layer`, each in the type that its key takes."""
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
            value = yaml_files.parse(value.text, name)
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is a section and takes KEY: value pairs, not {shown(value)}")
        merged[key] = _merge(tree[key], value, types[key], where, f"{prefix}{key}.")
    return merged


def _nearest_key(key: str, known: Mapping[str, Any]) -> str:
    sections = {name.upper() for name in METHODS.names()} if "METHODS" in known else set()
    return nearest(key, {*known, *sections})


CORE_TYPES = _types_of(CORE)


def _row(entry: str, cfg: CfgNode) -> Row:
    if not entry.strip():
        raise UserError("METHODS: an entry is empty: name a method")
    name, *overrides = words = split(entry, " ")
    METHODS.check(name)
    signature = METHODS.signature(name)
    where = f"METHODS: {entry!r}"
    section = _merge(cfg[name.upper()], _parse_overrides(overrides, where), _types(name), where)
    hyper_parameters = {key: section[key.upper()] for key in signature.settings}
    return Row(" ".join(words), name, hyper_parameters, signature)


def _check(cfg: CfgNode) -> None:
    """Raise UserError for a value that names nothing or lies out of range."""
    if not cfg.METHODS:
        raise UserError("METHODS is empty: name at least one method")
    for key in ("METHODS", "CORRUPTIONS", "SEVERITY", "SEEDS"):
        if len(set(cfg[key])) < len(cfg[key]):
            raise UserError(f"{key} names something twice: {cfg[key]}")
        if not cfg[key]:
            raise UserError(f"{key} is empty")
    checked: list[Row] = []
    for entry in cfg.METHODS:
        row = _row(entry, cfg)
        for other, its_entry in zip(checked, cfg.METHODS):
            if (row.method, row.hyper_parameters) == (other.method, other.hyper_parameters):
                raise UserError(f"METHODS: {its_entry!r} and {entry!r} are one row, with equal "
                                "hyper-parameters: leave one out")
        checked.append(row)
        if row.needs not in KINDS:
            raise UserError(f"method {row.method!r} needs an unknown kind of backbone: "
                            f"{row.needs!r}; kinds: {', '.join(KINDS)}")
    DATASETS.check(cfg.DATASET)
    if not cfg.DATA_DIR:
        raise UserError("DATA_DIR is empty: give a folder, or . for the one you are in")
    for key, known in (("CORRUPTIONS", CORRUPTIONS), ("SETTING", SETTINGS), ("ORDER", ORDERS),
                       ("METRIC", METRICS), ("CORRUPTION_CONSTANTS", ("auto", *SIDES)),
                       ("TEMPLATES", ("auto", *template_sets()))):
        values = cfg[key] if isinstance(cfg[key], list) else [cfg[key]]
        for value in values:
            if value not in known:
                raise UserError(f"{key}: unknown {value!r}: {nearest(str(value), known)}")
    if cfg.DIRICHLET <= 0:
        raise UserError(f"DIRICHLET {cfg.DIRICHLET}: a concentration is positive")
    for severity in cfg.SEVERITY:
        if severity not in (0, *SEVERITIES):
            raise UserError(f"SEVERITY {severity}: severities are 1 to 5, and 0 for clean images")
    if cfg.CORRUPT and not any(cfg.SEVERITY):
        raise UserError("CORRUPT true with SEVERITY [0] leaves all images clean: add SEVERITY 5")
    if cfg.CORRUPTION_CONSTANTS != "auto" and not cfg.CORRUPT:
        raise UserError(f"CORRUPTION_CONSTANTS {cfg.CORRUPTION_CONSTANTS} is for CORRUPT true: "
                        f"the corruptions of DATASET {cfg.DATASET} have constants of their own")
    if cfg.NUM_IMAGES == 0 or cfg.NUM_IMAGES < -1:
        raise UserError(f"NUM_IMAGES {cfg.NUM_IMAGES}: give a positive count, or -1 for all images")
    if cfg.BATCH_SIZE < 1:
        raise UserError(f"BATCH_SIZE {cfg.BATCH_SIZE}: a batch holds at least one image")
    for seed in cfg.SEEDS:
        check_seed("SEEDS", seed)
    check_device("DEVICE", cfg.DEVICE)
