"""Wanted: the cells that the saved config of a results folder asks for. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tta_apm.data.streams import domains as domains_of
from tta_apm.names import clean
from tta_apm.report.protocol import DomainKey, Protocol


@dataclass(frozen=True)
class Wanted:
    """The cells that the last run in a folder was to make, from its saved config.

    Args:
        dataset, setting, order: of the run, as in its records.
        methods: the texts of its rows, in order.
        domains, seeds: those that each row must have to be complete.
        unknown_because: why the config is unknown, a sentence; the other fields are then empty.
    """

    dataset: str = ""
    setting: str = ""
    order: str = ""
    methods: tuple[str, ...] = ()
    domains: tuple[DomainKey, ...] = ()
    seeds: tuple[int, ...] = ()
    unknown_because: str = ""

    def is_of_run(self, protocol: Protocol) -> bool:
        """Whether a row of `protocol` belongs to the run."""
        return protocol.row in self.methods and (self.dataset, self.setting, self.order) == (
            protocol.dataset, protocol.setting, protocol.order)

    def missing_rows(self, protocols: Iterable[Protocol]) -> list[str]:
        """The texts of the run's rows that have no cell yet."""
        found = {protocol.row for protocol in protocols if self.is_of_run(protocol)}
        return [text for text in self.methods if text not in found]


def saved_config(folder: Path) -> dict[str, Any]:
    """The config.yaml of a results folder; {} if it is not found or not a config."""
    import yaml

    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def wanted(folder: Path) -> Wanted:
    """The cells that the config.yaml of a results folder asks for."""
    from tta_apm.config.written import split

    saved = saved_config(folder)
    texts = [saved.get(key) for key in ("DATASET", "SETTING", "ORDER")]
    lists = [saved.get(key) for key in ("METHODS", "CORRUPTIONS", "SEVERITY", "SEEDS")]
    kinds = (str, str, int, int)
    if not all(isinstance(text, str) for text in texts) or not all(
            isinstance(values, list) and all(isinstance(value, kind) for value in values)
            for values, kind in zip(lists, kinds)):
        return Wanted(unknown_because=(
            f"{clean(str(folder / 'config.yaml'))} is not found or not a config: a row counts as "
            "complete if it has every domain that any row has, for each of its own seeds."))
    dataset, setting, order = map(str, texts)
    methods, corruptions, severities, seeds = (values or [] for values in lists)
    if order == "dirichlet":
        order = f"{order} {saved.get('DIRICHLET')}"
    return Wanted(
        dataset=dataset, setting=setting, order=order,
        methods=tuple(clean(" ".join(split(entry, " "))) for entry in methods),
        domains=tuple((domain.corruption, domain.severity)
                      for domain in domains_of(dataset, corruptions, severities)),
        seeds=tuple(seeds))
