"""Keys: every core key of a run with its default, its type and its checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode

from tta_apm.backbones.build import PACKAGED
from tta_apm.backbones.clip_templates import template_sets
from tta_apm.config.launch import check_launch
from tta_apm.config.values import check_device, check_seed, type_of
from tta_apm.data.corruptions.constants import CORRUPTIONS, SEVERITIES, SIDES
from tta_apm.data.streams import ORDERS, SETTINGS
from tta_apm.errors import UserError, at_least, choose, positive
from tta_apm.metrics import METRICS
from tta_apm.registry import DATASETS

CORE: dict[str, Any] = {
    # The rows of the table, in order: the name of a method, and KEY VALUE pairs of its section for
    # a variant, e.g. [tent, "apm STEPS 10"].
    "METHODS": ["source"],
    "DATASET": "digits_c",
    # Folder that holds the data sets.
    "DATA_DIR": "data",
    "CORRUPTIONS": list(CORRUPTIONS),
    # Severities 1 to 5; 0 is the clean data set.
    "SEVERITY": [5],
    # Corrupt the clean images on the fly, for a data set without corrupted images.
    "CORRUPT": False,
    # The constants of CORRUPT's severities: "cifar" (for 32 pixels), "imagenet" (for 224) or
    # "auto", the one whose size is nearest to the images', on a logarithmic scale.
    "CORRUPTION_CONSTANTS": "auto",
    # Images per domain, from the start of the data set; -1 for all.
    "NUM_IMAGES": -1,
    # reset_each_domain, continual (no reset between domains), gradual (continual, severities rise
    # and fall) or mixed_domains (all domains in one stream).
    "SETTING": "reset_each_domain",
    # Order of the images in a stream: shuffled, dirichlet (classes correlated in time) or sorted
    # (by class).
    "ORDER": "shuffled",
    # Concentration for ORDER dirichlet: the smaller, the more correlated.
    "DIRICHLET": 0.1,
    # Each seed shuffles the streams and seeds the methods; the table gives mean and std.
    "SEEDS": [42],
    # Images per call of a method; the results of scope "batch" and "stream" depend on it.
    "BATCH_SIZE": 200,
    # Prompt templates of CLIP: "auto" is the data set's own ensemble, "single" one template.
    "TEMPLATES": "auto",
    # CLASSIFIER, CLIP, MAE, ROTATION: a section for each kind of backbone. backbones/build.py lists
    # their keys (MODEL, WEIGHTS, ...) with comments.
    **{name.upper(): dict(kind.section) for name, kind in PACKAGED.items()},
    # Folder of the official frost pictures; "" uses the best source that is installed.
    "FROST_DIR": "",
    # "auto" is the first CUDA device if there is one, else the CPU.
    "DEVICE": "auto",
    # Rows that run side by side, so that each image is read once for all of them: a number, or
    # "auto" for as many as fit the free memory. It changes no prediction.
    "TOGETHER": "auto",
    # Threads that read and corrupt images; "auto" is one for each free core.
    "NUM_WORKERS": "auto",
    # The resources of each worker of --launcher. GPUS -1 means one, or none where DEVICE is cpu or
    # there is no GPU; CPUS 0 means one, or the cluster's default. The other keys are for Slurm:
    # TIME as D-HH:MM:SS, MEMORY as 32G, SETUP with commands to run first (e.g. "module load
    # cuda"), and ARRAY_LIMIT for the number of jobs that run at once (0: all). They change no
    # number.
    "LAUNCH": {"GPUS": -1, "CPUS": 0, "MEMORY": "", "TIME": "", "PARTITION": "", "ACCOUNT": "",
               "QOS": "", "CONSTRAINT": "", "SETUP": [], "ARRAY_LIMIT": 0},
    # The metric that tables print: error or accuracy.
    "METRIC": "error",
    # Whether tables show the rows of the paper's table for DATASET and SEVERITY, if there is one.
    "PUBLISHED": False,
    # An ablation of the paper to show beside the rows. TABLE is table_5a, table_5b, table_8,
    # table_9 or "" for none. ROWS names the paper's row for each entry of METHODS, "" for none.
    "PAPER": {"TABLE": "", "ROWS": []},
    # The folder of the results; "" is results/<DATASET>.
    "OUTPUT_DIR": "",
    # Modules or .py files to import first; their @register methods can then be named.
    "PLUGINS": [],
}

# Types of the keys whose default is an empty list.
EMPTY_LISTS = {"PLUGINS": "list[str]", "SETUP": "list[str]", "ROWS": "list[str]",
               "MEAN": "list[float]", "STD": "list[float]"}


def types_of(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The types of keys and of sections of keys, from their defaults."""
    return {key: types_of(value) if isinstance(value, Mapping)
            else type_of(key, value, EMPTY_LISTS.get(key, "")) for key, value in defaults.items()}


CORE_TYPES = types_of(CORE)


def check(cfg: CfgNode) -> None:
    """Raise UserError for an unknown name or a value out of range."""
    if not cfg.METHODS:
        raise UserError("METHODS is empty: name at least one method")
    for key in ("METHODS", "CORRUPTIONS", "SEVERITY", "SEEDS"):
        if len(set(cfg[key])) < len(cfg[key]):
            raise UserError(f"{key} names something twice: {cfg[key]}")
        if not cfg[key]:
            raise UserError(f"{key} is empty")
    DATASETS.check(cfg.DATASET)
    if not cfg.DATA_DIR:
        raise UserError("DATA_DIR is empty: give a folder, or . for the one you are in")
    for key, known in (("CORRUPTIONS", CORRUPTIONS), ("SETTING", SETTINGS), ("ORDER", ORDERS),
                       ("METRIC", METRICS), ("CORRUPTION_CONSTANTS", ("auto", *SIDES)),
                       ("TEMPLATES", ("auto", *template_sets()))):
        values = cfg[key] if isinstance(cfg[key], list) else [cfg[key]]
        for value in values:
            choose(key, "", str(value), known)
    positive("", DIRICHLET=cfg.DIRICHLET)
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
    at_least(1, "", BATCH_SIZE=cfg.BATCH_SIZE)
    for key in ("TOGETHER", "NUM_WORKERS"):
        if cfg[key] != "auto" and not re.fullmatch("[1-9][0-9]{0,8}", cfg[key]):
            raise UserError(f'{key} {cfg[key]}: give a positive whole number, or "auto"')
    check_launch(cfg.LAUNCH)
    for seed in cfg.SEEDS:
        check_seed("SEEDS", seed)
    check_device("DEVICE", cfg.DEVICE)
