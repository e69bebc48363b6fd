"""Leaderboards: results in the formats of others, as `tta-apm export` writes them. No torch.

    csv, latex    our tables as they are
    online-tta    rows of benchmark.md of mariodoebler/test-time-adaptation
    bibtex        what to cite for the methods and data sets of a folder
    robustbench   a model's JSON and its line in unaggregated_results.csv
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tta_apm.errors import UserError, nearest
from tta_apm.report import render, robustbench_entry
from tta_apm.report.blocks import Block, make_blocks
from tta_apm.report.results import Rows

CITATIONS = Path(__file__).with_name("citations.bib")
# As benchmark.md writes them; what it has not keeps our name.
SETTINGS = {"continual": "Continual", "mixed_domains": "Mixed domains",
            "reset_each_domain": "Reset each shift", "gradual": "Gradual"}
DATASETS = {"cifar10_c": "CIFAR10-C", "cifar100_c": "CIFAR100-C", "imagenet_c": "ImageNet-C",
            "imagenet_c_50k": "ImageNet-C", "imagenet_r": "ImageNet-R", "imagenet_a": "ImageNet-A",
            "imagenet_sketch": "ImageNet-Sketch", "imagenet_v2": "ImageNet-V2"}
METHODS = {"source": "Source", "clip_zero_shot": "Source", "norm": "BN-1"}


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
        UserError: if nothing is at severity 5, or two rows would share a place.
    """
    tables: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    blocks = [block for block in make_blocks(rows) if block.severity in ("0", "5")]
    for block in blocks:
        for line in block.frame.to_dict("records"):
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
        parts += [f"#### {DATASETS.get(dataset, dataset)}\n{_pipe_table(lines)}"]
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
    return "Correlated" if setting == "Continual" else f"{setting} correlated"


def _column(line: Mapping[str, Any]) -> str:
    method, _, variant = str(line["method"]).partition(" ")
    return f"{METHODS.get(method, method.upper())} {variant}".strip()


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
    table = [["Architecture", *columns], ["---"] * (1 + len(columns))]
    for backbone, cells in lines.items():
        best = min((cell.partition("&")[0] for cell in cells.values() if cell != "-"),
                   key=float, default="-")
        table.append([backbone, *(_bold(cells.get(column, "-"), best) for column in columns)])
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
    by_text = {each.protocol.row: each for each in rows}
    if row not in by_text:
        raise UserError(f"--row {row!r}: {nearest(row, by_text)}")
    if not name or not re.fullmatch(r"\w+", name):
        raise UserError("--name NameYearWord of letters and digits, such as Modi2024Asynchronous, "
                        "is what RobustBench calls a model")
    chosen = by_text[row]
    paper = next((found for _, found in _citations() if chosen.protocol.method in _keywords(found)),
                 {"title": row, "author": "", "url": "", "year": ""})
    venue = f"{paper.get('booktitle', paper.get('journal', ''))} {paper['year']}".strip()
    return robustbench_entry.write_entry(
        chosen, name, {"title": paper["title"], "author": _names(paper["author"]),
                       "venue": venue, "link": paper["url"]},
        folder, additional_data=additional_data)


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
