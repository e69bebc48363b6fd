"""text_logs: the runs in a log that a host prints, with a line per domain. Imports no torch.

    mariodoebler/test-time-adaptation   imagenet_c error % [fog5][#samples=5000]: 97.80%
    yuyongcan/Benchmark-TTA             cifar10_c accuracy % [fog5][#samples=10000]: 66.67%
    DequanWang/tent                     error % [fog5]: 72.30%
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tta_apm.data.corruptions.constants import SEVERITIES
from tta_apm.errors import UserError, explain
from tta_apm.interop.boards import LOGGED
from tta_apm.interop.dotted import dotted
from tta_apm.report.imported_log import CLEAN, Errors, Log, is_int

NUM_VALIDATION = 50_000
# Keys of a host's config that describe a run, not the settings of its row.
_OF_THE_RUN = {"RNG_SEED", "LOG_DEST", "LOG_TIME", "SAVE_DIR", "OUTPUT", "DESC", "CORRUPTION.TYPE",
               "CORRUPTION.SEVERITY"}

_HEAD = re.compile(r"^\[\d\d/\d\d/\d\d \d\d:\d\d:\d\d\] \[[^\]]*\]: ?", re.ASCII)
_RESULT = re.compile(r"^(?:(?P<dataset>\w+) )?(?P<metric>error|accuracy) % "
                     r"\[(?P<domain>\w*?)(?P<severity>\d?)\](?:\[#samples=(?P<count>\d+)\])?: "
                     r"(?P<value>.*)%$", re.ASCII)
# The host pads the name to 20 characters, so "mean error: 26.17%" does not match.
_OF_MIXTURE = re.compile(r"^(?=.{20,} error: )(?P<domain>\w+) +error: (?P<value>.*)%$", re.ASCII)
_OURS = re.compile(r"^tta-apm runs (?P<method>\w+) over (?P<backbone>.+?): (?P<settings>\{.*\})$")
_CONFIG = re.compile(r"^CORRUPTION:$")


def text_logs(file: Path, text: str, of: Mapping[str, Any], dataset: str) -> list[Log]:
    """The runs in a host's log.

    Args:
        file: the log, for error messages.
        text: its content.
        of: its name and hash, which are fields of Log.
        dataset: name of the data set here, for a file that does not state it.

    Raises:
        UserError: for a log without results, or with ambiguous ones.
    """
    return [_log(run, of, dataset) for run in _runs(file, text)]


@dataclass(frozen=True)
class _Run:
    """One run in a text log: its config, and its lines as (number, text)."""

    file: Path
    config: dict[str, Any]
    lines: list[tuple[int, str]]

    def section(self, name: str) -> dict[str, Any]:
        """A section of the config, {} if it is missing; UserError if it is not a section."""
        content = self.config.get(name, {})
        if not isinstance(content, dict):
            raise UserError(f"{self.file}: {name} of its config is {content!r}, not a section")
        return content

    def results(self) -> list[tuple[int, re.Match[str]]]:
        return [(number, found) for number, line in self.lines if (found := _RESULT.match(line))]


def _runs(file: Path, text: str) -> list[_Run]:
    """The runs with results; each starts with the config that the host prints."""
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


def _log(run: _Run, of: Mapping[str, Any], dataset: str) -> Log:
    results, file = run.results(), run.file
    first = results[0][1]
    for number, result in results:
        if (result["dataset"], result["metric"]) != (first["dataset"], first["metric"]):
            raise UserError(f"{file}: lines {results[0][0]} and {number} are of two data sets or "
                            "of two hosts: import their logs separately")
    said = {found[0]: found for _, line in run.lines if (found := _OURS.match(line))}
    if len(said) > 1:
        raise UserError(f"{file} holds runs of two methods or settings of tta-apm without a config "
                        "between them: import their logs separately")
    ours = next(iter(said.values()), None)
    model, optim, corruption = (run.section(name) for name in ("MODEL", "OPTIM", "CORRUPTION"))
    settings = json.loads(ours["settings"]) if ours else {
        key.lower(): optim[key] for key in ("LR", "METHOD", "STEPS") if key in optim}
    settings.pop("seed", None)
    errors = _errors(run, results)
    return Log(
        host=_host(first), **of,
        method=ours["method"] if ours else model.get("ADAPTATION", "not stated"),
        hyper_parameters=dotted(settings),
        # CLASSIFIER.MODEL, a network of this package, takes precedence over the host's ARCH.
        backbone=ours["backbone"] if ours else (run.section("CLASSIFIER").get("MODEL")
                                                or model.get("ARCH", "not stated")),
        dataset=dataset or _our_dataset(first["dataset"] or corruption.get("DATASET", ""), errors,
                                        file),
        setting=run.config.get("SETTING", "reset at each domain"),
        batch_size=run.section("TEST").get("BATCH_SIZE", run.config.get("BATCH_SIZE")),
        seed=run.config.get("RNG_SEED"), errors=errors,
        settings={name: value for name, value in dotted(run.config).items()
                  if name not in _OF_THE_RUN},
        missing=_missing(run, errors), ours=ours is not None)


def _host(result: re.Match[str]) -> str:
    if result["dataset"] is None:
        return "tent"
    return "online-tta" if result["metric"] == "error" else "benchmark-tta"


def _errors(run: _Run, results: Sequence[tuple[int, re.Match[str]]]) -> Errors:
    """The error of each domain; for one that a gradual run visits twice, the mean."""
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
        is_clean = result["domain"] in ("", "none")
        if not is_clean and not severity:
            raise UserError(f"{run.file}: line {number}: {result['domain']} has no severity, and "
                            "tables have no column for it")
        domain = (CLEAN, 0) if is_clean else (result["domain"], severity)
        found.setdefault(domain, []).append(
            (number, error, count if is_int(count, 1) else None))
    for (name, severity), visits in found.items():
        if len(visits) > 1 and not gradual:
            raise UserError(f"{run.file}: {name} {severity} is in lines {visits[0][0]} and "
                            f"{visits[1][0]}, and its run is not gradual: if it holds two runs, "
                            "import their logs separately")
    return [(name, severity, round(sum(error for _, error, _ in visits) / len(visits), 6),
             visits[0][2]) for (name, severity), visits in found.items()]


def _fraction(file: Path, number: int, text: str) -> float:
    """Per cent as a fraction; UserError, which names the line, for a value outside 0 to 100."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not 0 <= float(text) <= 100:
        raise UserError(f"{file}: line {number}: {text}% is not between 0 and 100 %")
    return float(text) / 100


def _missing(run: _Run, errors: Errors) -> list[tuple[str, int]]:
    """The domains in a run's config for which there is no result."""
    section = run.section("CORRUPTION")
    names, severities = section.get("TYPE"), section.get("SEVERITY")
    if not isinstance(names, list) or not isinstance(severities, list):
        return []
    if "gradual" in str(run.config.get("SETTING")):
        severities = list(SEVERITIES)
    there = {(name, severity) for name, severity, _, _ in errors}
    if not {name for name, _ in there} <= set(map(str, names)):
        return []  # the clean images, or a mixture without results by domain
    return [(str(name), severity) for severity in severities for name in names
            if (name, severity) not in there]


def _our_dataset(named: str, errors: Errors, file: Path) -> str:
    if not named:
        raise UserError(f"{file} does not state its data set: give --dataset")
    dataset = LOGGED.get(named, named)
    whole = {count for *_, count in errors} == {NUM_VALIDATION}
    return f"{dataset}_50k" if whole else dataset
