"""load_dataset: a registered data set by its name."""

from __future__ import annotations

from collections.abc import Iterable

from tta_apm.data.corruptions.dataset import AUTO, on_the_fly
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.registry import DATASETS


def load_dataset(name: str, *, data_dir: str = "data", frost_dir: str = "", corrupt: bool = False,
                 constants: str = AUTO, domains: Iterable[Domain] = ()) -> DataSet:
    """The data set `name`, after a quick check of `domains`.

    Args:
        name: of a registered data set.
        data_dir: folder that holds the data sets.
        frost_dir: folder of the official frost pictures; "" for the best installed source.
        corrupt: whether to corrupt a clean data set on the fly.
        constants: the benchmark whose severities are used for that; see on_the_fly.
        domains: domains whose images must be found.

    Raises:
        UserError: if it is unknown, not found below `data_dir` or visibly incomplete.
    """
    dataset: DataSet = DATASETS.load(name)(data_dir=data_dir, frost_dir=frost_dir or None)
    if corrupt:
        dataset = on_the_fly(dataset, frost_dir or None, constants)
    for domain in domains:
        dataset.check(domain)
    return dataset
