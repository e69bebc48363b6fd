"""Logs: what other repositories' result files tell, in one form. Imports no torch.

    mariodoebler/test-time-adaptation   imagenet_c error % [fog5][#samples=5000]: 97.80%
    yuyongcan/Benchmark-TTA             cifar10_c accuracy % [fog5][#samples=10000]: 66.67%
    DequanWang/tent                     error % [fog5]: 72.30%
    LINs-lab/ttab                       log-1.json, with arguments.json beside it
    RobustBench/robustbench             unaggregated_results.csv
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tta_apm.bench.records import hash_bytes
from tta_apm.errors import UserError


@dataclass(frozen=True)
class Log:
    """One run of one method, as far as its log tells.

    Args:
        host: where the log comes from.
        file, file_hash: of the log.
        method, backbone: as the host names them.
        dataset: as ours are named.
        setting: in the host's own words, whose meaning may differ from ours.
        batch_size, seed: None where the log is silent.
        errors: [corruption, severity, error as a fraction, number of images or None] each.
    """

    host: str
    file: str
    file_hash: str
    method: str
    hyper_parameters: dict[str, Any]
    backbone: str
    dataset: str
    setting: str
    batch_size: int | None
    seed: int | None
    errors: list[tuple[str, int, float, int | None]]


# Data sets that hosts name otherwise than we do.
_DATASETS = {"imagenet_k": "imagenet_sketch", "cifar10": "cifar10_c", "cifar100": "cifar100_c",
             "imagenet": "imagenet_c"}
NUM_VALIDATION = 50_000

_HEAD = re.compile(r"^\[\d\d/\d\d/\d\d \d\d:\d\d:\d\d\] \[[^\]]*\]: ?", re.MULTILINE)
_RESULT = re.compile(r"^(?:(?P<dataset>\w+) )?(?P<metric>error|accuracy) % "
                     r"\[(?P<domain>\w*?)(?P<severity>\d?)\](?:\[#samples=(?P<count>\d+)\])?: "
                     r"(?P<value>[\d.]+)%$")
_OF_MIXTURE = re.compile(r"^(?P<domain>\w+) +error: (?P<value>[\d.]+)%$")
_OURS = re.compile(r"^tta-apm runs (?P<method>\w+) over (?P<backbone>.+?): (?P<settings>\{.*\})$")


def read(file: Path, *, dataset: str = "", models: Sequence[str] = ()) -> list[Log]:
    """The runs that a log of any known kind holds.

    Args:
        dataset: ours, where the file does not tell.
        models: of a table with a line per model, those to take; all by default.

    Raises:
        UserError: if the file is none of the known kinds, or does not tell its data set.
    """
    try:
        content = file.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from error
    of = {"file": str(file.name), "file_hash": hash_bytes(content)}
    if file.suffix == ".csv":
        return _robustbench(file, of, dataset, models)
    if file.suffix == ".json":
        return [_ttab(file, text, of, dataset)]
    return [_text_log(file, text, of, dataset)]


def _text_log(file: Path, text: str, of: Mapping[str, str], dataset: str) -> Log:
    messages = [message.strip() for message in _HEAD.split(text)]
    lines = [line.strip() for message in messages for line in message.splitlines()]
    results = [found for line in lines if (found := _RESULT.match(line))]
    if not results:
        raise UserError(f"{file} holds no results that are known here: no line like 'cifar10_c "
                        "error % [fog5][#samples=10000]: 12.34%'")
    cfg = _config(messages)
    ours = next((found for line in lines if (found := _OURS.match(line))), None)
    model, optim = cfg.get("MODEL", {}), cfg.get("OPTIM", {})
    method = ours["method"] if ours else model.get("ADAPTATION", "not told")
    settings = json.loads(ours["settings"]) if ours else {
        key.lower(): optim[key] for key in ("LR", "METHOD", "STEPS") if key in optim}
    settings.pop("seed", None)
    host = _host(results[0])
    named = results[0]["dataset"] or cfg.get("CORRUPTION", {}).get("DATASET", "")
    errors = _errors(results, lines, cfg.get("CORRUPTION", {}).get("NUM_EX"))
    return Log(
        host=host, **of, method=method, hyper_parameters=settings,
        backbone=ours["backbone"] if ours else str(model.get("ARCH", "not told")),
        dataset=dataset or _our_dataset(named, errors, file),
        setting=str(cfg.get("SETTING", "reset at each domain")),
        batch_size=cfg.get("TEST", {}).get("BATCH_SIZE", cfg.get("BATCH_SIZE")),
        seed=cfg.get("RNG_SEED"), errors=errors)


def _host(result: re.Match[str]) -> str:
    if result["dataset"] is None:
        return "tent"
    return "online-tta" if result["metric"] == "error" else "benchmark-tta"


def _config(messages: Iterable[str]) -> dict[str, Any]:
    """The config that hosts print as YAML, {} if it is not there."""
    import yaml

    for message in messages:
        if re.search(r"^CORRUPTION:$", message, re.MULTILINE):
            try:
                content = yaml.safe_load(message)
            except yaml.YAMLError:
                continue
            if isinstance(content, dict):
                return content
    return {}


def _errors(results: Sequence[re.Match[str]], lines: Sequence[str],
            num_ex: int | None) -> list[tuple[str, int, float, int | None]]:
    """Errors by domain; of a domain that was visited twice, the mean."""
    found: dict[tuple[str, int], list[tuple[float, int | None]]] = {}
    for result in results:
        value = float(result["value"]) / 100
        error = 1 - value if result["metric"] == "accuracy" else value
        count = int(result["count"]) if result["count"] else num_ex
        parts = [part for line in lines if (part := _OF_MIXTURE.match(line))]
        if result["domain"] == "mixed" and parts:
            for part in parts:
                found.setdefault((part["domain"], int(result["severity"] or 0)), []).append(
                    (float(part["value"]) / 100, None))
            continue
        severity = int(result["severity"] or 0)
        without = result["domain"] in ("", "none")  # a corruption
        domain = ("clean", 0) if without else (result["domain"], severity)
        found.setdefault(domain, []).append((error, count))
    return [(name, severity, round(sum(error for error, _ in values) / len(values), 6),
             values[0][1]) for (name, severity), values in found.items()]


def _our_dataset(named: str, errors: Sequence[tuple[str, int, float, int | None]],
                 file: Path) -> str:
    if not named:
        raise UserError(f"{file} does not tell its data set: give --dataset")
    dataset = _DATASETS.get(named, named)
    whole = {count for *_, count in errors} == {NUM_VALIDATION}
    return f"{dataset}_50k" if whole else dataset


def _ttab(file: Path, text: str, of: Mapping[str, str], dataset: str) -> Log:
    beside = file.with_name("arguments.json")
    try:
        entries, arguments = json.loads(text), json.loads(beside.read_text(encoding="utf-8"))
        overall = [entry for entry in entries if entry.get("type") == "overall"]
        accuracy = overall[-1]["accuracy_top1"] / 100
        domains = arguments["data_names"].split(";")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no whole log of ttab with {beside.name} beside it: "
                        f"{error!r}") from error
    if len(domains) > 1:
        raise UserError(f"{file} holds one accuracy over {len(domains)} domains, which no table "
                        "of ours has: run ttab once per domain")
    found = re.fullmatch(r"(\w+?_c)_(?:deterministic|stochastic)-(\w+)-(\d)", domains[0])
    name, corruption, severity = found.groups() if found else (domains[0], "clean", "0")
    ours = arguments.get("tta_apm", {}).get(arguments["model_adaptation_method"].upper())
    settings = ({key.lower(): value for key, value in ours.items()} if ours else
                {key: arguments[key] for key in ("lr", "n_train_steps") if key in arguments})
    return Log(
        host="ttab", **of, method=arguments["model_adaptation_method"], hyper_parameters=settings,
        backbone=arguments.get("tta_apm_backbone") or arguments.get("model_name", "not told"),
        dataset=dataset or name,
        setting="episodic" if arguments.get("episodic") else "online",
        batch_size=arguments.get("batch_size"), seed=arguments.get("seed"),
        errors=[(corruption, int(severity), round(1 - accuracy, 6), arguments.get("data_size"))])


def _robustbench(file: Path, of: Mapping[str, str], dataset: str,
                 models: Sequence[str]) -> list[Log]:
    try:
        frame = pd.read_csv(file, header=[0, 1], index_col=0)
        columns = [(str(name), int(severity)) for name, severity in frame.columns]
        if frame.empty or not frame.to_numpy().dtype.kind == "f":
            raise ValueError("it has no lines of accuracies")
    except (ValueError, IndexError) as error:
        raise UserError(f"{file} is no unaggregated_results.csv of robustbench: {error}") from error
    parts = [part for part in file.resolve().parts if part in ("cifar10", "cifar100", "imagenet")]
    if not dataset and not parts:
        raise UserError(f"{file} does not tell its data set: give --dataset, or leave the file in "
                        "robustbench's folders model_info/DATASET/corruptions")
    unknown = [name for name in models if name not in frame.index]
    if unknown:
        raise UserError(f"{file} has no model {unknown[0]!r}; it has {', '.join(frame.index)}")
    return [Log(host="robustbench", **of, method="source", hyper_parameters={}, backbone=str(name),
                dataset=dataset or _DATASETS[parts[-1]], setting="no adaptation", batch_size=None,
                seed=None, errors=[(*column, round(1 - accuracy, 6), None)
                                   for column, accuracy in zip(columns, values)])
            for name, values in zip(frame.index, frame.to_numpy()) if not models or name in models]
