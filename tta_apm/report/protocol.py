"""Protocol: how a row was run, and the key of a domain. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tta_apm.bench.records import Record

# A domain within its data set: corruption and severity.
DomainKey = tuple[str, int]


@dataclass(frozen=True)
class Protocol:
    """How a row was run. Cells that differ in one of these fields are never averaged.

    The fields are those of Record. For a row that was measured elsewhere, a field that its source
    does not state is "", 0 or None, and `num_images` is a text if there are several numbers.
    """

    row: str
    method: str
    hyper_parameters: Mapping[str, Any] | None
    backbone: str
    weights: str
    templates: str
    resolution: int
    preprocessing: str
    dataset: str
    num_images: int | str
    scope: str
    survives: str
    setting: str
    order: str
    batch_size: int | None

    @classmethod
    def of(cls, record: Record) -> Protocol:
        """The protocol of a cell."""
        return cls(**{each.name: getattr(record, each.name) for each in fields(cls)})


def domain_key(record: Record) -> DomainKey:
    return record.corruption, record.severity
