"""load_dataset: a registered data set, looked for before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable

from tta_apm.data.corruptions.dataset import AUTO, on_the_fly
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.registry import DATASETS


def load_dataset(name: str, *, data_dir: str = "data", frost_dir: str = "", corrupt: bool = False,
                 constants: str = AUTO, domains: Iterable[Domain] = ()) -> DataSet:
    """The data set `name`, and a glance at `domains` of it.

    Args:
        data_dir: folder that holds the data sets.
        frost_dir: folder of the official frost pictures, "" for the best installed source.
        corrupt: put a clean set under corruptions that are made on the fly.
        constants: whose severities those are; see on_the_fly.

    Raises:
        UserError: if it is unknown, not below `data_dir` or not whole as far as a glance can tell.
    """
    dataset: DataSet = DATASETS.load(name)(data_dir=data_dir, frost_dir=frost_dir or None)
    if corrupt:
        dataset = on_the_fly(dataset, frost_dir or None, constants)
    for domain in domains:
        dataset.check(domain)
    return dataset
