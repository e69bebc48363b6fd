"""inspect: check that a data set is found and complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tta_apm.data.dataset import Domain
from tta_apm.data.load import load_dataset
from tta_apm.data.streams import domains
from tta_apm.errors import UserError


class Finding(NamedTuple):
    """The result of inspecting a data set."""

    in_order: bool
    text: str  # its description, or what is wrong and what to do


def inspect(name: str, *, data_dir: str, corruptions: Sequence[str], severities: Sequence[int]
            ) -> Finding:
    """Check all parts of a data set: shapes of arrays, class folders and files.

    Args:
        name, data_dir: see load_dataset.
        corruptions, severities: those to check, if the data set has them on disk.
    """
    try:
        dataset = load_dataset(name, data_dir=data_dir, frost_dir="")
    except UserError as error:
        return Finding(False, str(error))
    wanted = domains(name, corruptions,
                     [severity for severity in dataset.on_disk if severity in (0, *severities)])
    errors = {}
    for domain in wanted:
        try:
            dataset.verify(domain)
        except UserError as error:
            errors[domain] = str(error)
    if not errors:
        text = dataset.describe(Domain(name, corruptions[0], severities[0]))
        return Finding(True, text if len(wanted) == 1 else f"{text}: {len(wanted)} domains")
    names = ", ".join(map(str, errors))
    lacking = f"{len(errors)} of {len(wanted)} domains are not ({names}): " if wanted[1:] else ""
    return Finding(False, lacking + next(iter(errors.values())))
