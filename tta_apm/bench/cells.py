"""Cell: one method × domain × seed of a sweep; and which of them are done. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import tta_apm
from tta_apm.bench.records import (Record, find_records, hash_bytes, load_predictions,
                                   load_record)
from tta_apm.config import Row, rows
from tta_apm.data.dataset import Domain
from tta_apm.data.streams import domains, schedule
from tta_apm.errors import UserError


@dataclass(frozen=True)
class Cell:
    """What is to be run: a row of METHODS on a domain with a seed."""

    row: Row
    domain: Domain
    seed: int
    protocol: dict[str, Any]  # everything in the config that decides the numbers
    code: str

    @property
    def name(self) -> str:
        """Path below the folder of cells, without ending."""
        # With signs: -1 and 1, 1e-3 and 1e+3 are different rows.
        row, order = (re.sub(r"[^A-Za-z0-9.+-]+", "_", text)
                      for text in (self.row.text, self.protocol["order"]))
        return f"{self.protocol['setting']}-{order}/{row}/{self.domain}-seed{self.seed}"

    @property
    def fingerprint(self) -> str:
        return hash_bytes(json.dumps(self.protocol, sort_keys=True).encode())

    def path(self, folder: Path) -> Path:
        """Its files below the results folder, without ending."""
        return folder / "cells" / self.name


def plan(cfg: CfgNode) -> list[Cell]:
    """The cells that a config asks for, in the order in which they run."""
    wanted = domains(cfg.DATASET, cfg.CORRUPTIONS, cfg.SEVERITY)
    return [Cell(row, domain, seed, _protocol(cfg, row, domain, wanted, seed), code)
            for row, code in [(row, _code(row)) for row in rows(cfg)]
            for seed in cfg.SEEDS for domain in wanted]


def carries_on(setting: str, scope: str) -> bool:
    """Whether a method of `scope` starts a stream from the state that the one before it left."""
    return setting != "reset_each_domain" and scope == "stream"


def missing(cells: Sequence[Cell], folder: Path, *, redo: bool = False) -> list[Cell]:
    """The cells that are not recorded below `folder`.

    Args:
        redo: count a cell that was made under another config or with other code as missing.

    Raises:
        UserError: for files that are none of a sweep or not whole, and, unless `redo`, for cells
            that were made under another config or with other code.
    """
    records = {path: load_record(path) for path in find_records(folder / "cells")}
    absent: set[str] = set()
    other: list[tuple[Cell, Record]] = []
    for cell in cells:
        path = cell.path(folder).with_name(cell.path(folder).name + ".json")
        if path not in records:
            absent.add(cell.name)
            continue
        record = records[path]
        load_predictions(path, record)
        if record.fingerprint != cell.fingerprint or record.code != cell.code:
            other.append((cell, record))
    if other and not redo:
        cell, record = other[0]
        raise UserError(
            f"{len(other)} of {len(cells)} cells in {folder} were made {_difference(cell, record)}"
            f" (e.g. {cell.name}): run again with --redo to replace them, or set OUTPUT_DIR to "
            "another folder to keep both")
    absent |= {cell.name for cell, _ in other}
    return [cell for cell in cells if cell.name in absent]


def _difference(cell: Cell, record: Record) -> str:
    """How the cell that is wanted differs from the one that is there."""
    if record.fingerprint == cell.fingerprint:
        return "with other code"
    wanted = dict(cell.protocol["hyper_parameters"], batch_size=cell.protocol["batch_size"],
                  dataset=cell.protocol["dataset"])
    found = dict(record.hyper_parameters, batch_size=record.batch_size, dataset=record.dataset)
    if cell.protocol["num_images"] > 0:
        wanted["num_images"], found["num_images"] = cell.protocol["num_images"], record.num_images
    changes = [f"{key.upper()} {found.get(key)}, now {value}" for key, value in wanted.items()
               if value not in (found.get(key), "auto")]
    return f"under another config ({'; '.join(changes) or 'its backbone, prompts or domains'})"


def _protocol(cfg: CfgNode, row: Row, domain: Domain, wanted: Sequence[Domain],
              seed: int) -> dict[str, Any]:
    protocol: dict[str, Any] = {
        "method": row.method, "hyper_parameters": row.hyper_parameters,
        "backbone": dict(cfg[row.needs.upper()]),
        "dataset": domain.dataset, "corruption": domain.corruption, "severity": domain.severity,
        "corrupt": cfg.CORRUPT and domain.severity > 0,
        "num_images": cfg.NUM_IMAGES, "frost_dir": cfg.FROST_DIR,
        "setting": cfg.SETTING, "order": order_of(cfg), "batch_size": cfg.BATCH_SIZE, "seed": seed}
    if row.needs == "clip":
        protocol["templates"] = cfg.TEMPLATES
    streams = schedule(cfg.SETTING, wanted)
    last = max(place for place, stream in enumerate(streams) if domain in stream)
    first = 0 if carries_on(cfg.SETTING, row.scope) else last
    if row.scope != "image":  # the company that a method's predictions depend on
        protocol["streams"] = [[str(other) for other in stream]
                               for stream in streams[first:last + 1]]
    return protocol


def order_of(cfg: CfgNode) -> str:
    """The order of the streams, as a record states it."""
    return f"dirichlet {cfg.DIRICHLET}" if cfg.ORDER == "dirichlet" else cfg.ORDER


# What makes the numbers; tables, the command line and the bookkeeping do not.
_SOURCES = ("apm", "audit.py", "backbones", "batch_norm.py", "data", "bench/evaluate.py",
            "entropy.py", "episodes.py", "method.py", "precision.py", "views.py")


def _code(row: Row) -> str:
    """Hash of the sources and packaged weights that make the numbers of a row."""
    return hash_bytes(_common_code() + row.signature.source.read_bytes())


@cache
def _common_code() -> bytes:
    """Digest of what makes the numbers of every row."""
    root = Path(tta_apm.__file__).parent
    digest = hashlib.sha256()
    for name in _SOURCES:
        files = [root / name] if (root / name).is_file() else sorted((root / name).rglob("*"))
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.name.encode() + file.read_bytes())
    return digest.digest()
