"""Leaderboards: results in the formats of others, as `tta-apm export` writes them. No torch.

    csv, latex    our tables as they are
    online-tta    rows of benchmark.md of mariodoebler/test-time-adaptation
    bibtex        what to cite for the methods and data sets of a folder
    robustbench   a model's JSON and its line in unaggregated_results.csv
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tta_apm.config.values import split
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.errors import UserError, nearest
from tta_apm.interop.official import require
from tta_apm.interop.robustbench import write_entry
from tta_apm.report import phrases, render
from tta_apm.report.results import Rows, TableRow
from tta_apm.report.table import CLEAN_KEY, Block, make_blocks

CITATIONS = Path(__file__).with_name("citations.bib")
# As benchmark.md writes them; what it has not keeps our name.
SETTINGS = {"continual": "Continual", "mixed_domains": "Mixed domains",
            "reset_each_domain": "Reset each shift", "gradual": "Gradual"}
# Its data sets, each with the images that a figure there is over, per domain.
DATASETS = {"cifar10_c": ("CIFAR10-C", 10_000), "cifar100_c": ("CIFAR100-C", 10_000),
            "imagenet_c": ("ImageNet-C", 5_000), "imagenet_r": ("ImageNet-R", 30_000),
            "imagenet_sketch": ("ImageNet-Sketch", 50_889)}
METHODS = {"source": "Source", "clip_zero_shot": "Source", "norm": "BN-1", "cotta": "CoTTA",
           "rotta": "RoTTA", "adacontrast": "AdaCont.", "norm_test": "BN-1"}
# Methods that run one of a host's, and the key that has its name there.
ADAPTERS = {"online_tta": "name"}
SEVERITY = "5"
# Those of its data sets whose domains are corruptions.
CORRUPTED = {"cifar10_c", "cifar100_c", "imagenet_c"}


def csv_table(rows: Rows) -> str:
    """See render.csv_text."""
    return render.csv_text(make_blocks(rows))


def latex_table(rows: Rows) -> str:
    """See render.latex."""
    return render.latex(make_blocks(rows))


def online_tta(rows: Rows) -> str:
    """Mean errors in the layout of benchmark.md: per setting and data set, a line per backbone.

    Severity 5 only, as there; data sets without corruptions as they are. The best of a line is
    bold, and ± gives the standard deviation over seeds.

    Raises:
        UserError: if nothing is at severity 5, two rows would share a place, or a row is not what
            benchmark.md is about: the published images, all of them, under all corruptions.
    """
    tables: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    blocks = [block for block in make_blocks(rows) if block.severity in ("0", SEVERITY)]
    for block in blocks:
        for line, row in zip(block.frame.to_dict("records"), rows.of(block.dataset)):
            _require(row, block)
            notes.setdefault((_setting(line), block.dataset), []).append(_conditions(line, block))
            place = tables.setdefault((_setting(line), block.dataset), {}).setdefault(
                str(line["backbone"]), {})
            column = _column(line)
            if column in place:
                raise UserError(f"two rows would be {column} of {line['backbone']} on "
                                f"{block.dataset}: export them from folders of their own")
            place[column] = _figure(line, block)
    if not tables:
        raise UserError("benchmark.md holds severity 5 only, and there is none: run it")
    parts, last = [], ""
    for (setting, dataset), lines in sorted(tables.items()):
        parts += [f"## {setting}"] if setting != last else []
        last = setting
        parts += [f"#### {DATASETS[dataset][0]}\n{_pipe_table(lines)}",
                  "\n".join(dict.fromkeys(notes[setting, dataset]))]
    return "\n\n".join(parts) + "\n"


def bibtex(rows: Rows) -> str:
    """The entries for the methods and data sets of `rows`."""
    used = {name for row in rows for name in (row.protocol.method, row.protocol.dataset)}
    return "\n\n".join(text for text, found in _citations() if used & _keywords(found)) + "\n"


FORMATS: dict[str, Callable[[Rows], str]] = {
    "csv": csv_table, "latex": latex_table, "online-tta": online_tta, "bibtex": bibtex}


def _setting(line: Mapping[str, Any]) -> str:
    setting = SETTINGS.get(line["setting"], str(line["setting"]))
    if line["order"] == "shuffled":
        return setting
    return "Correlated" if setting == "Continual" else f"{setting}, correlated"


def _require(row: TableRow, block: Block) -> None:
    """Raise UserError for a row that benchmark.md is not about."""
    record = row.protocol
    if record.dataset not in DATASETS:
        raise UserError(f"benchmark.md has no table for {record.dataset}: it has them for "
                        f"{', '.join(DATASETS)}; export it from a folder of its own")
    more = set(block.columns) - {*CORRUPTIONS, *CLEAN_KEY[:1]}
    if more:
        raise UserError(f"benchmark.md has no corruption {sorted(more)[0]}: export from a folder "
                        "without it")
    corrupted = record.dataset in CORRUPTED
    domains = [(name, int(SEVERITY)) for name in CORRUPTIONS] if corrupted else [CLEAN_KEY]
    require(row, "benchmark.md", domains,
            f"{len(CORRUPTIONS)} corruptions at severity {SEVERITY}" if corrupted else "images",
            DATASETS[record.dataset][1],
            f"run it with SEVERITY [{SEVERITY if corrupted else 0}] and all CORRUPTIONS")


def _conditions(line: Mapping[str, Any], block: Block) -> str:
    return (f"Images: {line['images_from']}, {line['num_images']} per domain, "
            f"{phrases.corruptions(block.columns)}, severity {block.severity}, seeds "
            f"{line['seeds']}.")


def _column(line: Mapping[str, Any]) -> str:
    """What benchmark.md calls a method; a host's own goes by its own name."""
    method, *pairs = split(str(line["method"]), " ")
    key = ADAPTERS.get(method)
    if key:
        method = str(json.loads(line["hyper_parameters"]).get(key, method))
        pairs = [word for place in range(0, len(pairs), 2) for word in pairs[place:place + 2]
                 if pairs[place].lower() != key]
    return " ".join([METHODS.get(method, method.upper()), *pairs])


def _figure(line: Mapping[str, Any], block: Block) -> str:
    name = block.shown[-1]
    if math.isnan(line[name]):
        return "-"
    spread = line[f"std_{name}"]
    return f"{100 * line[name]:.1f}" + (
        "" if math.isnan(spread) else f"&plusmn;{100 * spread:.2g}")


def _pipe_table(lines: Mapping[str, Mapping[str, str]]) -> str:
    """A line per backbone, a column per method."""
    columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    table = [["Architecture", *map(render.escape_markdown, columns)],
             ["---"] * (1 + len(columns))]
    for backbone, cells in lines.items():
        best = min((cell.partition("&")[0] for cell in cells.values() if cell != "-"),
                   key=float, default="-")
        table.append([render.escape_markdown(backbone),
                      *(_bold(cells.get(column, "-"), best) for column in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _bold(cell: str, best: str) -> str:
    value, sign, spread = cell.partition("&")
    return f"**{value}**{sign}{spread}" if value == best != "-" else cell


def robustbench(rows: Rows, *, row: str, name: str, folder: Path,
                additional_data: bool) -> list[Path]:
    """Write a row's JSON and its line of unaggregated_results.csv below `folder`.

    Args:
        row: of the table, as METHODS names it.
        name: of the model: NameYearWord.
        additional_data: whether its backbone learnt from more than the data set's own images.

    Raises:
        UserError: for an unknown row, a name of other characters, or a row that is not whole.
    """
    chosen = find_row(rows, row)
    if not name or not re.fullmatch(r"\w+", name):
        raise UserError("--name NameYearWord of letters and digits, such as Modi2024Asynchronous, "
                        "is what RobustBench calls a model")
    paper = next((found for _, found in _citations() if chosen.protocol.method in _keywords(found)),
                 {"title": row, "author": "", "url": "", "year": ""})
    venue = f"{paper.get('booktitle', paper.get('journal', ''))} {paper['year']}".strip()
    return write_entry(
        chosen, name, {"title": paper["title"], "author": _names(paper["author"]),
                       "venue": venue, "link": paper["url"]},
        folder, additional_data=additional_data)


def find_row(rows: Rows, text: str) -> TableRow:
    """The row that METHODS names `text`. UserError if there is none, or more than one."""
    found = [row for row in rows if row.protocol.row == text]
    if not found:
        raise UserError(f"--row {text!r}: {nearest(text, {row.protocol.row for row in rows})}")
    if len(found) > 1:
        raise UserError(f"--row {text!r}: {len(found)} rows are called so, which differ in their "
                        "setting, data set or images: export from a folder with one of them")
    return found[0]


def _citations() -> list[tuple[str, dict[str, str]]]:
    """The entries of citations.bib: their text, without keywords, and their fields."""
    entries = []
    citations = CITATIONS.read_text(encoding="utf-8")
    for text in re.findall(r"^@.*?^\}$", citations, re.MULTILINE | re.DOTALL):
        found = dict(re.findall(r"^  (\w+) = \{(.*)\},$", text, re.MULTILINE))
        entries.append((re.sub(r"^  keywords = .*\n", "", text, flags=re.MULTILINE), found))
    return entries


def _keywords(found: Mapping[str, str]) -> set[str]:
    return set(found["keywords"].split(", "))


def _names(authors: str) -> str:
    """BibTeX's "Last, First and ..." as "First Last, ..."."""
    return ", ".join(" ".join(reversed(author.split(", "))) for author in authors.split(" and "))
