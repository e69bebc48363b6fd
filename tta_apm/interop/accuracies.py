"""accuracies: reading RobustBench's unaggregated_results.csv, one line per model. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tta_apm.errors import UserError
from tta_apm.interop.boards import LEADERBOARDS, not_accuracies
from tta_apm.report.imported_log import Log


def read_accuracies(file: Path, of: Mapping[str, Any], dataset: str, models: Sequence[str]
                    ) -> list[Log]:
    """One log for each model of the file, or for each of `models`; arguments as in text_logs."""
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
        raise UserError(f"{file} has model {twice[0]!r} in {names.count(twice[0])} lines: remove "
                        "all but one")
    parts = [part for part in file.resolve().parts if part in LEADERBOARDS]
    if not dataset and not parts:
        raise UserError(f"{file} does not state its data set: give --dataset, or leave the file in "
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
                                f"{' '.join(map(str, column))}: accuracies must be in [0,1]")
    return [Log(host="robustbench", **of, method=name, hyper_parameters={}, backbone=name,
                dataset=dataset or LEADERBOARDS[parts[-1]], setting="no adaptation",
                batch_size=None, seed=None,
                errors=[(*column, round(1 - float(accuracy), 6), None)
                        for column, accuracy in zip(columns, values)])
            for name, values in chosen]
