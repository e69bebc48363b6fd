"""Plan: the cells that a config asks for, and which of them are missing. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tta_apm.bench.identity import Images, code_of, differences, files_of, without_files
from tta_apm.bench.records import Record, find_records, hash_bytes, load_predictions, load_record
from tta_apm.config import Row, rows
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.data.streams import domains, schedule
from tta_apm.errors import UserError

# Characters of the name of a row's folder; a longer name is cut and gets a hash.
MAX_NAME = 150


@dataclass(frozen=True)
class Cell:
    """A cell to run: a row of METHODS on a domain with a seed."""

    row: Row
    domain: Domain
    seed: int
    identity: dict[str, Any]  # everything that decides the numbers: see identity.py

    @property
    def name(self) -> str:
        """The path of its files below the folder of cells, without suffix."""
        settings = self.identity["settings"]
        return (f"{settings['setting']}-{file_name(settings['order'])}/{file_name(self.row.text)}/"
                f"{self.domain}-seed{self.seed}")

    @property
    def fingerprint(self) -> str:
        return hash_bytes(json.dumps(self.identity, sort_keys=True).encode())

    def path(self, folder: Path) -> Path:
        """The path of its files below the results folder, without suffix."""
        return folder / "cells" / self.name

    def record_file(self, folder: Path) -> Path:
        """The path of its record below the results folder."""
        path = self.path(folder)
        return path.with_name(path.name + ".json")


def file_name(text: str) -> str:
    """A file name for `text`; different texts get different names, even if case is ignored."""
    # With signs: -1 and 1, 1e-3 and 1e+3 are different rows.
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)
    method, _, values = text.partition(" ")
    plain = (re.fullmatch(r"[A-Za-z0-9.+_ -]*", text) and len(name) <= MAX_NAME
             and not any(word.lower() != word for word in [method, *values.split()[1::2]]))
    return name if plain else f"{name[:MAX_NAME]}-{hash_bytes(text.encode())[:8]}"


def plan(cfg: CfgNode, dataset: DataSet | None = None) -> list[Cell]:
    """The cells that a config asks for, in the order in which they run.

    Args:
        dataset: the data set of the config; None if it is not found: the cells' identities then
            have no data.

    Raises:
        UserError: if two rows would share files, or a file cannot be read.
    """
    wanted = domains(cfg.DATASET, cfg.CORRUPTIONS, cfg.SEVERITY)
    images = None if dataset is None else Images(dataset, cfg.NUM_IMAGES, cfg.TEMPLATES)
    every = rows(cfg)
    data = {(domain, needs): images.data_of(domain, needs) if images else {}
            for domain in wanted for needs in {row.needs for row in every}}
    cells = []
    for row in every:
        files, code = files_of(cfg, row), code_of(cfg, row)
        for seed in cfg.SEEDS:
            cells += [Cell(row, domain, seed, _as_recorded({
                "settings": _settings(cfg, row, domain, wanted, seed), "files": files,
                "data": data[domain, row.needs], "code": code})) for domain in wanted]
    _check_names(cells)
    return cells


def _as_recorded(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity as it is read from a record, where tuples are lists."""
    content: dict[str, Any] = json.loads(json.dumps(identity))
    return content


def _check_names(cells: Sequence[Cell]) -> None:
    found: dict[str, Cell] = {}
    for cell in cells:
        other = found.setdefault(cell.name.casefold(), cell)
        if other is not cell:
            raise UserError(f"METHODS: {other.row.text!r} and {cell.row.text!r} would share the "
                            f"files {cell.name}: leave one of them out")


def carries_state(setting: str, scope: str) -> bool:
    """Whether a method of `scope` carries its state from one stream to the next."""
    return setting != "reset_each_domain" and scope == "stream"


def missing(cells: Sequence[Cell], folder: Path, *, redo: bool = False,
            images: Images | None = None) -> list[Cell]:
    """The cells that are not recorded below `folder`.

    Args:
        redo: also return the cells whose record is corrupt or has another identity.
        images: the images, whose pixels are compared with the record if signatures differ.

    Raises:
        UserError: if a file is corrupt or does not belong to a sweep; and, unless `redo`, if the
            record of a cell has another identity.
    """
    absent: list[Cell] = []
    other: list[tuple[Cell, Record]] = []  # with another identity
    same: list[tuple[Cell, Record]] = []
    paths = [cell.record_file(folder) for cell in cells]
    records = _load(folder, may_be_damaged=set(paths) if redo else set())
    for cell, path in zip(cells, paths):
        record = records.get(path)
        if record is None:
            absent.append(cell)
        elif _has_identity(cell, record, images):
            same.append((cell, record))
        else:
            other.append((cell, record))
    other += _dependent(other, same)
    if other and not redo:
        cell, record = other[0]
        raise UserError(
            f"{len(other)} of {len(cells)} cells in {folder} were made {_difference(cell, record)}"
            f" (e.g. {cell.name}): run again with --redo to replace them, or set OUTPUT_DIR to "
            "another folder to keep both")
    lost = {cell.name for cell in absent} | {cell.name for cell, _ in other}
    return [cell for cell in cells if cell.name in lost]


def _load(folder: Path, may_be_damaged: Collection[Path]) -> dict[Path, Record]:
    """The records below `folder` by path.

    Raises:
        UserError: if a record or its predictions are corrupt, unless it is in `may_be_damaged`.
    """
    records: dict[Path, Record] = {}
    damaged: list[UserError] = []
    for path in find_records(folder / "cells"):
        try:
            record = load_record(path)
            load_predictions(path, record)
            records[path] = record
        except UserError as error:
            if path not in may_be_damaged:
                damaged.append(error)
    if damaged:
        more = f" (and {len(damaged) - 1} more like it)" if len(damaged) > 1 else ""
        raise UserError(f"{damaged[0]}{more}")
    return records


def _dependent(other: Sequence[tuple[Cell, Record]], same: Sequence[tuple[Cell, Record]]
               ) -> list[tuple[Cell, Record]]:
    """Those of `same` whose method saw the domain of one of `other` before, in carried state."""
    changed = {(cell.row.text, cell.seed, str(cell.domain)) for cell, _ in other}
    return [(cell, record) for cell, record in same
            if any((cell.row.text, cell.seed, domain) in changed
                   for stream in cell.identity["settings"].get("streams", ()) for domain in stream)]


def _has_identity(cell: Cell, record: Record, images: Images | None) -> bool:
    """Whether a record has the identity of a cell, so that a new run would give its numbers."""
    wanted, found = dict(cell.identity), dict(record.identity)
    data, before = dict(wanted.pop("data")), dict(found.pop("data", {}))
    if wanted != found:
        return False
    if not data:  # the images are not found
        return True
    signature, known = data.pop("signature"), before.pop("signature", None)
    if data != before:
        return False
    return bool(signature) and signature == known or (
        images is not None and images.hash_of(cell.domain) == record.images_hash)


def _difference(cell: Cell, record: Record) -> str:
    """How the identity of a wanted cell differs from that of its record."""
    if not record.identity:
        return "by version 0.1.0, whose records have no hashes of weights, images and code"
    changes = differences(cell.identity, record.identity)
    if changes == ["other code"]:
        return "with other code"
    if changes == ["other signature"]:
        changes = ["other images"]
    return f"under another config or from other files ({'; '.join(changes)})"


def _settings(cfg: CfgNode, row: Row, domain: Domain, wanted: Sequence[Domain],
              seed: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method": row.method, "hyper_parameters": without_files(row.hyper_parameters),
        "backbone": without_files(cfg[row.needs.upper()]),
        "dataset": domain.dataset, "corruption": domain.corruption, "severity": domain.severity,
        "corrupt": cfg.CORRUPT and domain.severity > 0,
        "num_images": cfg.NUM_IMAGES,
        "setting": cfg.SETTING, "order": order_of(cfg), "batch_size": cfg.BATCH_SIZE, "seed": seed}
    streams = schedule(cfg.SETTING, wanted)
    last = max(index for index, stream in enumerate(streams) if domain in stream)
    first = 0 if carries_state(cfg.SETTING, row.scope) else last
    if row.scope != "image":  # the streams seen before
        settings["streams"] = [[str(other) for other in stream]
                               for stream in streams[first:last + 1]]
    return settings


def order_of(cfg: CfgNode) -> str:
    """The order of the streams, as a record states it."""
    return f"dirichlet {cfg.DIRICHLET}" if cfg.ORDER == "dirichlet" else cfg.ORDER
