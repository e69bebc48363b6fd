"""Identity: everything that decides the numbers of a cell, by content. Imports no torch.

It has four parts, which are kept in the cell's record:
- settings: the row's hyper-parameters and all config values that decide the numbers;
- files: a hash of each file that the row reads (weights, contexts) and of each folder of code;
- data: labels, class names, prompts, how the images were made, and a signature that is cheap to
  compute (names, sizes and times of the image files). If the signature differs, the pixels are
  read and compared with the hash in the record, so that a copy of a folder is the same data;
- code: a hash of the import closure of the method, `evaluate`, the data set and the backbone (see
  code.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from tta_apm.backbones.build import find_kind
from tta_apm.bench.code import hash_code
from tta_apm.bench.file_hashes import hash_file, remember, remembered
from tta_apm.bench.provenance import commit_of
from tta_apm.config import Row
from tta_apm.data.dataset import DataSet, Domain, hash_images, hash_pixels, hash_text
from tta_apm.errors import UserError, reason
from tta_apm.registry import DATASETS, network_home

# Images per read when pixels are hashed.
CHUNK = 256
# The key whose value is always a folder of code, even if it is a single word.
CLONE = "REPO"
# Replaces the path of a file in settings: its content decides, which is in `files`.
A_FILE = "a file"
# Weights that ship with the package; backbones.files has the same, but imports torch.
PACKAGED = Path(__file__).parents[1] / "backbones" / "shipped"


def code_of(cfg: CfgNode, row: Row) -> str:
    """A hash of the code that decides the numbers of a row on the config's data set."""
    between = "" if row.needs == row.signature.needs else "tta_apm.backbones.image_tower"
    return _code_of(row.signature.source, find_kind(row.needs).module, between,
                    DATASETS.home(cfg.DATASET), network_home(cfg[row.needs.upper()].MODEL) or "")


@cache
def _code_of(*roots: str | Path) -> str:
    return hash_code([*(root for root in roots if root), "tta_apm.bench.evaluate",
                      "tta_apm.backbones.clip_templates"])


def files_of(cfg: CfgNode, row: Row) -> dict[str, str]:
    """Hashes of the files that a row reads, by the config keys that name them.

    A folder of code, e.g. a clone, has its commit and a hash of its sources.

    Raises:
        UserError: if an existing file cannot be read.
    """
    keys = {f"{row.needs.upper()}.{key}": value for key, value in cfg[row.needs.upper()].items()}
    keys |= {f"{row.method.upper()}.{key.upper()}": value
             for key, value in row.hyper_parameters.items()}
    if row.needs == "classifier":
        keys["weights of robustbench"] = _robustbench_file(cfg.CLASSIFIER)
    found = {key: list(_hashes(key, value)) for key, value in keys.items()}
    return {key: " ".join(hashes) for key, hashes in found.items() if hashes}


def without_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which each value that names a file is replaced by A_FILE."""
    return {key: A_FILE if any(_hashes(key, value)) else value for key, value in settings.items()}


def _hashes(key: str, value: Any) -> Iterator[str]:
    """The hashes of the files and folders that the value of a key names; none for other values."""
    is_path = key.rpartition(".")[2].upper() == CLONE
    for text in value if isinstance(value, (list, tuple)) else [value]:
        for part in text.split(",") if isinstance(text, str) and text else []:
            path = _existing(part.strip(), is_path)
            if path is None:
                continue
            try:
                yield _hash_folder(path) if path.is_dir() else hash_file(path)
            except OSError as error:
                raise UserError(f"cannot read {path}: {reason(error)}") from error


def _existing(text: str, is_path: bool) -> Path | None:
    """The file or the folder of code that a text names; None for other texts."""
    is_word = Path(text).name == text and not Path(text).suffix and not is_path
    if "\0" in text or is_word:  # e.g. "adam", even if the working folder has a file of that name
        return None
    try:
        for name in (text, text.partition("#")[0]):  # file#part names a part of a file
            path = Path(name).expanduser()
            if path.is_file() or path.is_dir() and any(_sources(path)):
                return path
            packaged = PACKAGED / name
            if path.name == name and packaged.is_file():
                return packaged
    except (OSError, RuntimeError):  # a name too long for a path, no home folder
        pass
    return None


def _sources(folder: Path) -> Iterator[Path]:
    """The files of code and settings in a folder, sorted, without hidden ones."""
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(above, name) for name in sorted(names)
                    if name.endswith((".py", ".yaml", ".yml")) and not name.startswith("."))


def _robustbench_file(section: Mapping[str, Any]) -> str:
    """The file that robustbench loads if WEIGHTS is empty; "" for other models."""
    family, _, name = section["MODEL"].partition("/")
    if family != "robustbench" or section["WEIGHTS"]:
        return ""
    return ",".join(sorted(map(str, Path("models").glob(f"*/corruptions/{name}.pt"))))


def _hash_folder(folder: Path) -> str:
    """The commit of a folder of code, if it is a clone, and a hash of its sources."""
    sources = hash_text(*(f"{file.relative_to(folder)} {hash_file(file)}"
                          for file in _sources(folder)))
    return f"{commit_of(folder)} {sources}".strip()


class Images:
    """Identifies the images of a data set, once for each domain.

    Args:
        dataset: the data set.
        count: images per domain, from the start of the data set; -1 for all.
        template_set: a name of prompt templates, "auto" for the data set's own.
    """

    def __init__(self, dataset: DataSet, count: int, template_set: str) -> None:
        self.dataset = dataset
        self.count = len(dataset.labels) if count < 0 else count
        self.prompts = template_set
        if template_set == "auto":
            # A named set is covered by the hash of the code, a data set's own templates are not.
            self.prompts = (hash_text(*dataset.templates) if dataset.templates
                            else dataset.template_set)
        self.labels = hash_text(json.dumps(dataset.labels[:self.count].tolist()))
        self.class_names = hash_text(*dataset.class_names)
        self._pixels: dict[Domain, str] = {}

    def data_of(self, domain: Domain, needs: str) -> dict[str, str]:
        """The identity of a domain's data, in named parts; `needs` is the kind of backbone."""
        data = {"labels": self.labels, "class names": self.class_names,
                "images": self.dataset.describe(domain),
                "signature": self.dataset.signature(domain, self.count) or ""}
        return {**data, "prompts": self.prompts} if find_kind(needs).has_prompts else data

    def hash_of(self, domain: Domain) -> str:
        """The hash of a domain's pixels, as in records; reads or makes the images if needed."""
        if domain not in self._pixels:
            self._pixels[domain] = remembered(self._key(domain)) or self._read(domain)
        return self._pixels[domain]

    def _key(self, domain: Domain) -> str:
        """The key under which the hash of a domain's pixels is cached; "" if it cannot be."""
        signature = self.dataset.signature(domain, self.count)
        code = hash_code([DATASETS.home(domain.dataset)])
        return hash_text(signature, str(domain), str(self.count), code) if signature else ""

    def _read(self, domain: Domain) -> str:
        parts = [np.arange(start, min(start + CHUNK, self.count))
                 for start in range(0, self.count, CHUNK)]
        found = hash_images(hash_pixels(image) for part in parts
                            for image in self.dataset.images(domain, part))
        remember(self._key(domain), found)
        return found


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The differences of two identities in words, e.g. "LR 0.001, now 0.01"."""
    changes = []
    for part in ("settings", "files", "data"):
        now, before = wanted.get(part, {}), found.get(part, {})
        for key in sorted({*now, *before}):
            if now.get(key) == before.get(key):
                continue
            if part == "settings":
                changes += _changed_settings(key, before.get(key), now.get(key))
            elif key in now and key in before:
                changes.append(f"{key} has another content" if part == "files" else
                               f"other {key}" if key != "images" else
                               f"images {before[key]!r}, now {now[key]!r}")
            else:
                changes.append(f"{key} {'is new' if key in now else 'is gone'}")
    if wanted.get("code") != found.get("code"):
        changes.append("other code")
    return changes


def _changed_settings(key: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [f"{name.upper()} {now.get(name)} is not a file that is found"
                if before.get(name) == A_FILE else
                f"{name.upper()} {before.get(name)}, now {now.get(name)}"
                for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if key == "streams":
        return ["other domains before it"]
    return [f"{key.upper()} {before}, now {now}"]
