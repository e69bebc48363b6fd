"""CSV: one line per method, protocol, data set and severity. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tta_apm.report import phrases
from tta_apm.report.table import Figure, Table, TableLine, in_usual_order

if TYPE_CHECKING:
    import pandas as pd

# The fields of a figure beside its value, with the prefixes of their columns: those in per cent,
# and the others.
_PERCENT = {"std": "std", "teacher": "teacher", "delta": "delta", "low": "delta_low",
            "high": "delta_high", "agreement": "agreement"}
_COSINE = {"cosine": "cosine"}
# Columns after those of the corruptions; protocol, cost and origin follow them.
_FIRST = ("std_mean", "metric", "dataset", "severity", "num_images", "seeds", "num_missing",
          "teacher_mean", "delta_mean", "delta_low_mean", "delta_high_mean", "agreement", "cosine")

# A text that starts with one of these is a formula to a spreadsheet; the last four in East Asian
# languages.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def text(tables: Sequence[Table]) -> str:
    """All tables in one.

    Columns: `method`, the corruptions, `mean`, `clean` if there is one, then the others. Scores,
    std and differences are in per cent with four decimals; missing values are empty.
    """
    import pandas as pd

    shown = {name for table in tables for name in table.shown}
    names = [*in_usual_order(shown - {"mean", "clean"}), "mean", *(shown & {"clean"})]
    lines = [_line(table, line, names) for table in tables for line in table.lines]
    first = ["method", *names, *_FIRST]
    columns = [*first, *(name for name in lines[0] if name not in first)] if lines else first
    return csv_of(pd.DataFrame(lines, columns=columns))


def _line(table: Table, line: TableLine, names: Sequence[str]) -> dict[str, Any]:
    """The entries of a line by column; columns that are not in _FIRST keep this order."""
    protocol, origin = dict(vars(line.protocol)), vars(line.origin)
    hyper_parameters = protocol.pop("hyper_parameters")
    figures = {name: line.figures.get(name, Figure()) for name in names}
    cells = {
        "method": line.heading, "metric": f"{table.metric} %", "severity": phrases.severity(table),
        "seeds": phrases.seed_list(line.seeds), "num_missing": line.num_missing,
        "agreement": _percent(line.mean.agreement), "cosine": _short(line.mean.cosine),
        **{name: "" if protocol[name] is None else protocol[name] for name in (
            "dataset", "num_images", "setting", "order", "batch_size", "scope", "survives",
            "backbone", "weights", "templates", "resolution", "preprocessing")},
        "hyper_parameters": ("" if hyper_parameters is None
                             else json.dumps(hyper_parameters, sort_keys=True)),
        **{name: value if isinstance(value, bool) else _short(value)
           for name, value in vars(line.cost).items()},
        **{name: value if isinstance(value, str) else "; ".join(value)
           for name, value in origin.items()},
        **{name: _percent(figure.value) for name, figure in figures.items()}}
    for fields, rounded in ((_PERCENT, _percent), (_COSINE, _short)):
        cells |= {f"{prefix}_{name}": rounded(getattr(figure, field))
                  for field, prefix in fields.items() for name, figure in figures.items()}
    return cells


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def csv_of(frame: pd.DataFrame) -> str:
    """A frame as CSV in which no text is a formula to a spreadsheet."""
    inert = frame.rename(columns=_inert).apply(lambda column: column.map(_inert))
    return str(inert.to_csv(index=False, lineterminator="\n"))


def _inert(cell: Any) -> Any:
    """`cell`, after an apostrophe if it is a text that a spreadsheet takes for a formula."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"
