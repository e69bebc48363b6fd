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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tta_apm.bench.records import hash_bytes
from tta_apm.data.corruptions.constants import SEVERITIES
from tta_apm.errors import UserError, explain
from tta_apm.interop.boards import LEADERBOARDS, LOGGED, not_accuracies
from tta_apm.report.imported_log import CLEAN, Errors, Log, checked, is_int

NUM_VALIDATION = 50_000
# Of a host's config: where a run is logged, and what tells the runs of one row apart.
_OF_THE_RUN = {"RNG_SEED", "LOG_DEST", "LOG_TIME", "SAVE_DIR", "OUTPUT", "DESC", "CORRUPTION.TYPE",
               "CORRUPTION.SEVERITY"}
_OF_TTABS_RUN = {"seed", "data_names", "job_name", "job_id", "timestamp", "python_path",
                 "main_file", "script_path", "script_class_name", "num_jobs_per_node",
                 "num_jobs_per_script", "wait_in_seconds_per_job", "root_path", "num_cpus",
                 "tta_apm"}

_HEAD = re.compile(r"^\[\d\d/\d\d/\d\d \d\d:\d\d:\d\d\] \[[^\]]*\]: ?", re.ASCII)
_RESULT = re.compile(r"^(?:(?P<dataset>\w+) )?(?P<metric>error|accuracy) % "
                     r"\[(?P<domain>\w*?)(?P<severity>\d?)\](?:\[#samples=(?P<count>\d+)\])?: "
                     r"(?P<value>.*)%$", re.ASCII)
# The host pads the name to 20 characters, so "mean error: 26.17%" does not match.
_OF_MIXTURE = re.compile(r"^(?=.{20,} error: )(?P<domain>\w+) +error: (?P<value>.*)%$", re.ASCII)
_OURS = re.compile(r"^tta-apm runs (?P<method>\w+) over (?P<backbone>.+?): (?P<settings>\{.*\})$")
_CONFIG = re.compile(r"^CORRUPTION:$")
_OF_TTAB = re.compile(r"(\w+?_c)_(deterministic|stochastic)-(\w+)-(\d)", re.ASCII)
_MADE = {"deterministic": "files on disk", "stochastic": "made by the host on the fly"}


def read(file: Path, *, dataset: str = "", models: Sequence[str] = ()) -> list[Log]:
    """The runs that a log of any known kind holds.

    Args:
        dataset: ours, where the file does not tell.
        models: of a table with a line per model, those to take; all by default.

    Raises:
        UserError: if the file is of no known kind, does not tell its data set, or has a value that
            no run can have.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from error
    of = {"file": str(file.name), "file_hash": hash_bytes(content)}
    try:
        if file.suffix == ".csv":
            found = _robustbench(file, of, dataset, models)
        elif file.suffix == ".json":
            found = [_ttab(file, text, of, dataset)]
        else:
            found = [_text_log(run, of, dataset) for run in _runs(file, text)]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(f"{file} is incomplete or not a log of a known kind: {explain(error)}") \
            from error
    return [checked(vars(log), str(file)) for log in found]


@dataclass(frozen=True)
class _Run:
    """One run in a text log: its config, and its lines with their numbers."""

    file: Path
    config: dict[str, Any]
    lines: list[tuple[int, str]]

    def section(self, name: str) -> dict[str, Any]:
        """A section of the config, {} if it is not there. UserError if it is not a section."""
        content = self.config.get(name, {})
        if not isinstance(content, dict):
            raise UserError(f"{self.file}: {name} of its config is {content!r}, not a section")
        return content

    def results(self) -> list[tuple[int, re.Match[str]]]:
        return [(number, found) for number, line in self.lines if (found := _RESULT.match(line))]


def _runs(file: Path, text: str) -> list[_Run]:
    """The runs with results: each begins with the config that the host prints."""
    lines = list(enumerate(text.split("\n"), 1))
    starts = [index for index, (_, line) in enumerate(lines) if _HEAD.match(line)]
    ends = [*starts[1:], len(lines)]
    configs = [(start, end) for start, end in zip(starts, ends) if any(
        _CONFIG.match(_bare(line)) for _, line in lines[start:end])]
    runs = []
    for index, (start, end) in enumerate([(0, 0), *configs]):
        until = configs[index][0] if index < len(configs) else len(lines)
        message = "\n".join(_HEAD.sub("", line.rstrip()) for _, line in lines[start:end])
        run = _Run(file, _config(file, lines[start][0], message) if message else {},
                   [(number, _bare(line)) for number, line in lines[end:until]])
        if run.results():
            runs.append(run)
    if not runs:
        raise UserError(f"{file} holds no results: no line like 'cifar10_c "
                        "error % [fog5][#samples=10000]: 12.34%'")
    return runs


def _bare(line: str) -> str:
    return _HEAD.sub("", line).strip()


def _config(file: Path, number: int, message: str) -> dict[str, Any]:
    """The config that a host prints as YAML."""
    import yaml

    try:
        aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(message))
        content = None if aliases else yaml.safe_load(message)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: its config in line {number} is not YAML: {explain(error)}") \
            from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: its config in line {number} is not one that a host prints")
    return content


def _text_log(run: _Run, of: Mapping[str, Any], dataset: str) -> Log:
    results, file = run.results(), run.file
    first = results[0][1]
    for number, result in results:
        if (result["dataset"], result["metric"]) != (first["dataset"], first["metric"]):
            raise UserError(f"{file}: lines {results[0][0]} and {number} are of two data sets or "
                            "of two hosts: import their logs one by one")
    said = {found[0]: found for _, line in run.lines if (found := _OURS.match(line))}
    if len(said) > 1:
        raise UserError(f"{file} holds runs of two methods or settings of ours, without the config "
                        "between them: import their logs one by one")
    ours = next(iter(said.values()), None)
    model, optim, corruption = (run.section(name) for name in ("MODEL", "OPTIM", "CORRUPTION"))
    settings = json.loads(ours["settings"]) if ours else {
        key.lower(): optim[key] for key in ("LR", "METHOD", "STEPS") if key in optim}
    settings.pop("seed", None)
    errors = _errors(run, results)
    return Log(
        host=_host(first), **of,
        method=ours["method"] if ours else model.get("ADAPTATION", "not told"),
        hyper_parameters=_plain(settings),
        # A network of ours is adapted by the host's methods, too, whatever ARCH says.
        backbone=ours["backbone"] if ours else (run.section("CLASSIFIER").get("MODEL")
                                                or model.get("ARCH", "not told")),
        dataset=dataset or _our_dataset(first["dataset"] or corruption.get("DATASET", ""), errors,
                                        file),
        setting=run.config.get("SETTING", "reset at each domain"),
        batch_size=run.section("TEST").get("BATCH_SIZE", run.config.get("BATCH_SIZE")),
        seed=run.config.get("RNG_SEED"), errors=errors,
        settings={name: value for name, value in _plain(run.config).items()
                  if name not in _OF_THE_RUN},
        missing=_missing(run, errors), ours=ours is not None)


def _host(result: re.Match[str]) -> str:
    if result["dataset"] is None:
        return "tent"
    return "online-tta" if result["metric"] == "error" else "benchmark-tta"


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as dotted keys; what JSON has not, such as dates, as text."""
    return dict(_flat(content, ""))


def _flat(content: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            plain = isinstance(value, (str, int, float, list, type(None)))
            yield f"{before}{key}", json.loads(json.dumps(value if plain else str(value),
                                                          default=str))


def _errors(run: _Run, results: Sequence[tuple[int, re.Match[str]]]) -> Errors:
    """Errors by domain; of one that a gradual run visits twice, the mean."""
    count_of_all = run.section("CORRUPTION").get("NUM_EX")
    gradual = "gradual" in str(run.config.get("SETTING"))
    parts = [(number, part) for number, line in run.lines if (part := _OF_MIXTURE.match(line))]
    found: dict[tuple[str, int], list[tuple[int, float, int | None]]] = {}
    for number, result in results:
        error = _fraction(run.file, number, result["value"])
        error = 1 - error if result["metric"] == "accuracy" else error
        count = int(result["count"]) if result["count"] else count_of_all
        severity = int(result["severity"] or 0)
        if result["domain"] == "mixed" and parts:
            for line_number, part in parts:
                found.setdefault((part["domain"], severity), []).append(
                    (line_number, _fraction(run.file, line_number, part["value"]), None))
            continue
        without = result["domain"] in ("", "none")  # a corruption
        if not without and not severity:
            raise UserError(f"{run.file}: line {number}: {result['domain']} has no severity, and "
                            "no table of ours has a column for it")
        domain = (CLEAN, 0) if without else (result["domain"], severity)
        found.setdefault(domain, []).append(
            (number, error, count if is_int(count, 1) else None))
    for (name, severity), visits in found.items():
        if len(visits) > 1 and not gradual:
            raise UserError(f"{run.file}: {name} {severity} stands in lines {visits[0][0]} and "
                            f"{visits[1][0]}, and its run is not gradual: where it holds two runs, "
                            "import their logs one by one")
    return [(name, severity, round(sum(error for _, error, _ in visits) / len(visits), 6),
             visits[0][2]) for (name, severity), visits in found.items()]


def _fraction(file: Path, number: int, text: str) -> float:
    """Per cent as a fraction. UserError that names the line for a value outside 0 to 100."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not 0 <= float(text) <= 100:
        raise UserError(f"{file}: line {number}: {text}% is not a share of images, 0 to 100 %")
    return float(text) / 100


def _missing(run: _Run, errors: Errors) -> list[tuple[str, int]]:
    """What a run over corruptions was asked for, by its config, and did not come to."""
    section = run.section("CORRUPTION")
    names, severities = section.get("TYPE"), section.get("SEVERITY")
    if not isinstance(names, list) or not isinstance(severities, list):
        return []
    if "gradual" in str(run.config.get("SETTING")):
        severities = list(SEVERITIES)
    there = {(name, severity) for name, severity, _, _ in errors}
    if not {name for name, _ in there} <= set(map(str, names)):
        return []  # the clean images, or a mixture that was not told apart
    return [(str(name), severity) for severity in severities for name in names
            if (name, severity) not in there]


def _our_dataset(named: str, errors: Errors, file: Path) -> str:
    if not named:
        raise UserError(f"{file} does not tell its data set: give --dataset")
    dataset = LOGGED.get(named, named)
    whole = {count for *_, count in errors} == {NUM_VALIDATION}
    return f"{dataset}_50k" if whole else dataset


def _ttab(file: Path, text: str, of: Mapping[str, Any], dataset: str) -> Log:
    beside = file.with_name("arguments.json")
    try:
        entries = json.loads(text)
        arguments = json.loads(beside.read_text(encoding="utf-8"))
        overall = [entry for entry in entries if entry.get("type") == "overall"]
        accuracy = overall[-1]["accuracy_top1"]
        domains = arguments["data_names"].split(";")
        method = arguments["model_adaptation_method"]
        ours = arguments.get("tta_apm", {}).get(method.upper())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is incomplete or not a log of ttab with {beside.name} beside it: "
                        f"{error!r}") from error
    if len(overall) > 1:
        raise UserError(f"{file} holds {len(overall)} runs: import their logs one by one")
    if isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)) \
            or not 0 <= accuracy <= 100:
        raise UserError(f"{file}: accuracy_top1 {accuracy!r} is not a share of images, 0 to 100 %")
    if len(domains) > 1:
        raise UserError(f"{file} holds one accuracy over {len(domains)} domains, which no table "
                        "of ours has: run ttab once per domain")
    found = _OF_TTAB.fullmatch(domains[0])
    if not found and any(f"_{kind}-" in domains[0] for kind in _MADE):
        raise UserError(f"{beside}: data_names {domains[0]!r} has no severity of 1 to 5")
    name, made, corruption, severity = found.groups() if found else (domains[0], "", CLEAN, "0")
    shown = ({key.lower(): value for key, value in ours.items()} if ours else
             {key: arguments[key] for key in ("lr", "n_train_steps") if key in arguments})
    return Log(
        host="ttab", **of, method=method.removeprefix("tta_apm_") if ours else method,
        hyper_parameters=_plain(shown),
        backbone=arguments.get("tta_apm_backbone") or arguments.get("model_name", "not told"),
        dataset=dataset or name,
        setting="episodic" if arguments.get("episodic") else "online",
        batch_size=arguments.get("batch_size"), seed=arguments.get("seed"),
        errors=[(corruption, int(severity), round(1 - accuracy / 100, 6),
                 arguments.get("data_size"))],
        settings={**{key: value for key, value in _plain(arguments).items()
                     if key.split(".")[0] not in _OF_TTABS_RUN},
                  **({"images": _MADE[made]} if made else {})},
        ours=ours is not None)


def _robustbench(file: Path, of: Mapping[str, Any], dataset: str,
                 models: Sequence[str]) -> list[Log]:
    try:
        import pandas as pd

        frame = pd.read_csv(file, header=[0, 1], index_col=0)
        columns = [(str(name), int(severity)) for name, severity in frame.columns]
        if frame.empty or not frame.to_numpy().dtype.kind == "f":
            raise ValueError("it has no lines of accuracies")
    except (ValueError, IndexError) as error:
        raise not_accuracies(file, error) from error
    names = [str(name) for name in frame.index]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{file} has model {twice[0]!r} in {names.count(twice[0])} lines: take out "
                        "all but one")
    parts = [part for part in file.resolve().parts if part in LEADERBOARDS]
    if not dataset and not parts:
        raise UserError(f"{file} does not tell its data set: give --dataset, or leave the file in "
                        "robustbench's folders model_info/DATASET/corruptions")
    unknown = [name for name in models if name not in names]
    if unknown:
        raise UserError(f"{file} has no model {unknown[0]!r}; it has {', '.join(names)}")
    chosen = [(name, values) for name, values in zip(names, frame.to_numpy())
              if not models or name in models]
    for name, values in chosen:
        for column, accuracy in zip(columns, values):
            if not 0 <= accuracy <= 1:
                raise UserError(f"{file}: the line of {name} has {accuracy} for "
                                f"{' '.join(map(str, column))}: accuracies are of 0 to 1 there")
    return [Log(host="robustbench", **of, method=name, hyper_parameters={}, backbone=name,
                dataset=dataset or LEADERBOARDS[parts[-1]], setting="no adaptation",
                batch_size=None, seed=None,
                errors=[(*column, round(1 - float(accuracy), 6), None)
                        for column, accuracy in zip(columns, values)])
            for name, values in chosen]
