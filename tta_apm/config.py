"""Config: every key of a run with its default, and how a file becomes a frozen yacs node.

A method's section is derived from its signature: `Tent(backbone, *, lr=1e-3, steps=1)` gives
`TENT: {LR: 0.001, STEPS: 1}`. Nothing heavy is imported to check a config.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from tta_apm.backbones.kinds import KINDS
from tta_apm.backbones.prompts import template_sets
from tta_apm.data.corruption_constants import CORRUPTIONS, SEVERITIES
from tta_apm.data.metrics import METRICS
from tta_apm.data.streams import ORDERS, SETTINGS
from tta_apm.errors import UserError, nearest
from tta_apm.registry import DATASETS, METHODS, Signature

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
    # robustbench/NAME, with the library's pretrained weights or a file.
    "CLASSIFIER": {"MODEL": "timm/digits_resnet", "WEIGHTS": "digits_resnet.safetensors"},
    # The backbone of methods that need CLIP: an open_clip name, with a pretrained tag or a file.
    "CLIP": {"MODEL": "digits_clip", "WEIGHTS": "digits_clip.safetensors"},
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
    file = find_file(Path(path))
    layers = _read_layers(file)
    layers.append(("the command line", _parse_overrides(overrides)))
    _import_plugins(layers)
    methods = _methods(layers)
    merged = {**CORE, **{name.upper(): _section(name) for name in methods}}
    known = {**CORE, **{name.upper(): _examples(name) for name in methods}}
    for where, layer in layers:
        merged = _merge(merged, layer, known, where)
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
    for where, layer in [*_read_layers(find_file(Path(path))),
                         ("the command line", _parse_overrides(overrides))]:
        merged = _merge(merged, layer, known, where)
    cfg = CfgNode(merged)
    cfg.freeze()
    return cfg


def rows(cfg: CfgNode) -> list[Row]:
    """The rows that METHODS asks for, each with its hyper-parameters resolved."""
    return [_row(entry, cfg) for entry in cfg.METHODS]


def find_file(path: Path) -> Path:
    """Resolve a config's path; cfgs/ is an alias of configs/, of the installed ones too."""
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


def _read_layers(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The contents of the file and of the BASE that it names, and that one names: deepest first."""
    layers: list[tuple[str, dict[str, Any]]] = []
    seen = []
    while True:
        content = _read_yaml(file)
        base = content.pop("BASE", None)
        layers.insert(0, (str(file), content))
        seen.append(file.resolve())
        if base is None:
            return layers
        base_file = file.parent / str(base)
        if not base_file.is_file():
            raise UserError(f"{file}: there is no BASE file {base_file}")
        if base_file.resolve() in seen:
            raise UserError(f"{file}: its BASE {base_file} is itself built on this file")
        file = base_file


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold KEY: value pairs, not {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    if len(overrides) % 2:
        raise UserError(f"overrides come as KEY VALUE pairs, but {overrides[-1]!r} has no value")
    tree: dict[str, Any] = {}
    for key, text in zip(overrides[::2], overrides[1::2]):
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"{key!r} sets a key of {section!r}, which is set to {node!r} as a "
                                "whole: give one of the two")
        node[leaf] = _literal(text)
    return tree


def _literal(text: str) -> Any:
    """A value as YAML reads it: [tent,apm], 3, true, text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _import_plugins(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    plugins: Any = None
    for _, layer in layers:
        plugins = layer.get("PLUGINS", plugins)
    for plugin in plugins if isinstance(plugins, list) else [plugins] if plugins else []:
        try:
            if str(plugin).endswith(".py"):
                _import_file(Path(plugin))
            else:
                importlib.import_module(str(plugin))
        except (ImportError, OSError) as error:
            raise UserError(f"PLUGINS: {plugin!r} cannot be imported: {error}") from error


def _import_file(path: Path) -> None:
    path = path.resolve()
    # Two files of the same name are two modules.
    name = f"tta_apm_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _methods(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The methods that are asked for or configured; each gets a section."""
    wanted = {key for _, layer in layers for key in layer}
    for layer in [CORE, *(layer for _, layer in layers)]:
        entries = layer.get("METHODS", [])
        for entry in [entries] if isinstance(entries, str) else entries or []:
            wanted |= {word.upper() for word in str(entry).split()[:1]}
    return [name for name in METHODS.names() if name.upper() in wanted]


def _section(name: str) -> dict[str, Any]:
    """The keys of a method's section and their defaults."""
    return {key.upper(): list(value) if isinstance(value, tuple) else value
            for key, value in METHODS.signature(name).settings.items()}


@dataclass(frozen=True)
class _OrNone:
    """Stands for a default of None, whose key takes values like `example` too."""

    example: Any


# Of "Sequence[int]" and the like, the part in brackets.
_LIST = re.compile(r"(?:Sequence|list|tuple)\[(\w+)(?:, \.\.\.)?\]")
_SCALARS: dict[str, Any] = {"bool": False, "int": 0, "float": 0.0, "str": ""}


def _examples(name: str) -> dict[str, Any]:
    """As `_section`, with what the annotation tells of a key in the place of a default of None."""
    annotations = METHODS.signature(name).annotations
    return {key: _or_none(annotations.get(key.lower(), "")) if value is None else value
            for key, value in _section(name).items()}


def _or_none(annotation: str) -> _OrNone | None:
    """What "int | None" or "Sequence[int] | None" allows; None if that cannot be told."""
    words = [word.strip() for word in annotation.strip("'").split("|")]
    types = [word for word in words if word != "None"]
    if len(types) != 1:
        return None
    items = _LIST.fullmatch(types[0])
    word = items[1] if items else types[0]
    if word not in _SCALARS:
        return None
    return _OrNone([_SCALARS[word]] if items else _SCALARS[word])


def _merge(tree: Mapping[str, Any], layer: Mapping[str, Any], known: Mapping[str, Any],
           where: str, prefix: str = "") -> dict[str, Any]:
    """A copy of `tree` with the values of `layer`, checked against the defaults `known`."""
    merged = dict(tree)
    for key, value in layer.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {prefix + key!r}: {_nearest_key(key, known)}")
        default = known[key]
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {prefix + key} is a section and takes KEY: value pairs, "
                                f"not {value!r}")
            merged[key] = _merge(tree[key], value, default, where, f"{prefix}{key}.")
        else:
            merged[key] = _coerce(value, default, f"{where}: {prefix + key}")
    return merged


def _nearest_key(key: str, known: Mapping[str, Any]) -> str:
    sections = {name.upper() for name in METHODS.names()} if "METHODS" in known else set()
    return nearest(key, {*known, *sections})


def _coerce(value: Any, default: Any, where: str) -> Any:
    """`value` in the type of `default`: 1 and "1e-3" serve as floats, a scalar as a list of one."""
    if default is None:  # its type is not known
        return value
    if isinstance(default, _OrNone):
        return None if value is None else _coerce(value, default.example, where)
    if isinstance(default, list):
        if value is None and not default:
            return []
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return [_coerce(item, default[0], where) for item in values] if default else values
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is type(default):
        return value
    raise UserError(f"{where} takes {_TYPE_NAMES[type(default)]}, not {value!r}")


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _row(entry: str, cfg: CfgNode) -> Row:
    name, *overrides = entry.split()
    METHODS.check(name)
    signature = METHODS.signature(name)
    section = dict(cfg[name.upper()])
    where = f"METHODS: {entry!r}"
    section = _merge(section, _parse_overrides(overrides), _examples(name), where)
    hyper_parameters = {key: section[key.upper()] for key in signature.settings}
    return Row(" ".join(entry.split()), name, hyper_parameters, signature)


def _check(cfg: CfgNode) -> None:
    """Raise UserError for a value that names nothing or lies out of range."""
    if not cfg.METHODS:
        raise UserError("METHODS is empty: name at least one method")
    for key in ("METHODS", "CORRUPTIONS", "SEVERITY", "SEEDS"):
        if len(set(cfg[key])) < len(cfg[key]):
            raise UserError(f"{key} names something twice: {cfg[key]}")
        if not cfg[key]:
            raise UserError(f"{key} is empty")
    for row in rows(cfg):
        if row.needs not in KINDS:
            raise UserError(f"method {row.method!r} needs an unknown kind of backbone: "
                            f"{row.needs!r}; kinds: {', '.join(KINDS)}")
    DATASETS.check(cfg.DATASET)
    for key, known in (("CORRUPTIONS", CORRUPTIONS), ("SETTING", SETTINGS), ("ORDER", ORDERS),
                       ("METRIC", METRICS),
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
    if cfg.NUM_IMAGES == 0 or cfg.NUM_IMAGES < -1:
        raise UserError(f"NUM_IMAGES {cfg.NUM_IMAGES}: give a positive count, or -1 for all images")
    if cfg.BATCH_SIZE < 1:
        raise UserError(f"BATCH_SIZE {cfg.BATCH_SIZE}: a batch holds at least one image")
    if cfg.DEVICE.split(":")[0] not in ("auto", "cpu", "cuda"):
        raise UserError(f"DEVICE {cfg.DEVICE!r}: use auto, cpu, cuda, cuda:1 or the like")
