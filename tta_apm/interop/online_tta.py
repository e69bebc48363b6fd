"""Online-tta: rows of benchmark.md of mariodoebler/test-time-adaptation. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tta_apm.config.written import split
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.errors import UserError
from tta_apm.interop.boards import BOARDS
from tta_apm.interop.official import require
from tta_apm.report import phrases
from tta_apm.report.formats.markdown import escape
from tta_apm.report.table import CLEAN_KEY, Figure, Table, TableLine

# Names in benchmark.md; settings that it does not have keep their names here.
SETTINGS = {"continual": "Continual", "mixed_domains": "Mixed domains",
            "reset_each_domain": "Reset each shift", "gradual": "Gradual"}
METHODS = {"source": "Source", "clip_zero_shot": "Source", "norm": "BN-1", "cotta": "CoTTA",
           "rotta": "RoTTA", "adacontrast": "AdaCont.", "norm_test": "BN-1", "bntest": "BN-1",
           # Methods that only its code has, by their names in the code.
           "bnalpha": "BNAlpha", "bnema": "BNEMA", "deyo": "DeYO", "ttaug": "TTAug"}
# Methods that run a method of a host, and the key with that method's name.
ADAPTERS = {"online_tta": "name"}
SEVERITY = 5


def text(tables: Sequence[Table]) -> str:
    """Mean errors in the layout of benchmark.md: per setting and data set, a line per backbone.

    As there, corrupted data sets have severity 5 only. The best online method of a line is bold,
    and ± gives the standard deviation over seeds.

    Raises:
        UserError: if there is no severity 5, if two rows would share a cell, or if a row is not on
            all published images under all corruptions.
    """
    grids: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    for table in tables:
        if table.severities not in ((0,), (SEVERITY,)):
            continue
        for line in table.lines:
            _require(line, table)
            key = _setting(line), table.dataset
            notes.setdefault(key, []).append(_conditions(line, table))
            cells = grids.setdefault(key, {}).setdefault(line.protocol.backbone, {})
            column = _column(line)
            if column in cells:
                raise UserError(f"two rows would be {column} of {line.protocol.backbone} on "
                                f"{table.dataset}: export them from separate folders")
            cells[column] = _figure(line.figures[table.shown[-1]])
    if not grids:
        raise UserError("benchmark.md holds severity 5 only, and there is none: run it")
    parts, last = [], ""
    for (setting, dataset), grid in sorted(grids.items()):
        parts += [f"## {setting}"] if setting != last else []
        last = setting
        parts += [f"#### {BOARDS[dataset].online_tta}\n{_pipe_table(grid)}",
                  "\n".join(dict.fromkeys(notes[setting, dataset]))]
    return "\n\n".join(parts) + "\n"


def _setting(line: TableLine) -> str:
    setting = SETTINGS.get(line.protocol.setting, line.protocol.setting)
    if line.protocol.order == "shuffled":
        return setting
    return "Correlated" if setting == "Continual" else f"{setting}, correlated"


def _require(line: TableLine, table: Table) -> None:
    """Raise UserError for a row that does not belong into benchmark.md."""
    if table.dataset not in BOARDS:
        raise UserError(f"benchmark.md has no table for {table.dataset}, only for "
                        f"{', '.join(BOARDS)}; export these from a separate folder")
    more = set(table.columns) - {*CORRUPTIONS, *CLEAN_KEY[:1]}
    if more:
        raise UserError(f"benchmark.md has no corruption {sorted(more)[0]}: export from a folder "
                        "without it")
    if line.row is None:
        raise UserError(f"{line.heading} was measured elsewhere: only rows of tta-apm are exported")
    corrupted = BOARDS[table.dataset].has_corruptions
    domains = [(name, SEVERITY) for name in CORRUPTIONS] if corrupted else [CLEAN_KEY]
    require(line.row, "benchmark.md", domains,
            f"{len(CORRUPTIONS)} corruptions at severity {SEVERITY}" if corrupted else "images",
            BOARDS[table.dataset].num_images,
            f"run it with SEVERITY [{SEVERITY if corrupted else 0}] and all CORRUPTIONS")


def _conditions(line: TableLine, table: Table) -> str:
    images = phrases.origins(line.origin.images_from)
    return (f"Images: {images}, {line.protocol.num_images} per domain, "
            f"{phrases.corruptions(table.columns)}, severity {phrases.severity(table)}, seeds "
            f"{phrases.seed_list(line.seeds)}.")


def _column(line: TableLine) -> str:
    """The name of a line's method in benchmark.md; a host's method has its own name."""
    method, *pairs = split(line.heading, " ")
    key = ADAPTERS.get(method)
    if key:
        method = str((line.protocol.hyper_parameters or {}).get(key, method)).lower()
        pairs = [word for start in range(0, len(pairs), 2) for word in pairs[start:start + 2]
                 if pairs[start].lower() != key]
    return " ".join([METHODS.get(method, method.upper()), *pairs])


def _figure(figure: Figure) -> str:
    if math.isnan(figure.value):
        return "-"
    return f"{100 * figure.value:.1f}" + (
        "" if math.isnan(figure.std) else f"&plusmn;{100 * figure.std:.2g}")


def _pipe_table(lines: Mapping[str, Mapping[str, str]]) -> str:
    """A Markdown table with a line per backbone and a column per method."""
    columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    table = [["Architecture", *map(escape, columns)], ["---"] * (1 + len(columns))]
    for backbone, cells in lines.items():
        best = min((cell.partition("&")[0] for column, cell in cells.items()
                    if cell != "-" and not column.endswith(phrases.OFFLINE)),
                   key=float, default="-")
        table.append([escape(backbone),
                      *(_bold(cells.get(column, "-"), best) for column in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _bold(cell: str, best: str) -> str:
    value, sign, spread = cell.partition("&")
    return f"**{value}**{sign}{spread}" if value == best != "-" else cell
