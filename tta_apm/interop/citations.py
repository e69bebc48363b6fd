"""Citations: the papers of methods and data sets, as BibTeX. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tta_apm.interop.online_tta import ADAPTERS
from tta_apm.report.table import Table, TableLine

# The end of an imported row's heading.
_IMPORTED = re.compile(r"\(imported, (?:ours in )?(?P<host>[\w-]+)\)$")
FILE = Path(__file__).with_name("citations.bib")


def text(tables: Sequence[Table]) -> str:
    """The entries for the tables' methods and data sets, and for the hosts of imported rows."""
    used = {name for table in tables for line in table.lines
            for name in (table.dataset, *_names(line))}
    return "\n\n".join(entry for entry, found in citations() if used & keywords(found)) + "\n"


def _names(line: TableLine) -> list[str]:
    """The names in a line: its method, the host's method that it runs, and the host of its run."""
    method = line.protocol.method.split(" ")[0]  # an imported one may be followed by other words
    names = [method]
    if method in ADAPTERS:
        inside = (line.protocol.hyper_parameters or {}).get(ADAPTERS[method])
        names += [str(inside).lower(), method.replace("_", "-")]
    if found := _IMPORTED.search(line.heading):
        names.append(found["host"])
    return names


def paper_of(method: str) -> dict[str, str] | None:
    """The BibTeX fields of a method's paper; None for an unknown method."""
    return next((found for _, found in citations() if method in keywords(found)), None)


def citations() -> list[tuple[str, dict[str, str]]]:
    """The entries of citations.bib: (text without keywords, fields) each."""
    entries = []
    for entry in re.findall(r"^@.*?^\}$", FILE.read_text(encoding="utf-8"),
                            re.MULTILINE | re.DOTALL):
        found = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
        entries.append((re.sub(r"^  keywords = .*\n", "", entry, flags=re.MULTILINE), found))
    return entries


def keywords(found: Mapping[str, str]) -> set[str]:
    """The methods and data sets that an entry is for."""
    return set(found["keywords"].split(", "))
