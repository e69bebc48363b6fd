"""Citations: what to cite for methods and data sets, as BibTeX. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tta_apm.report.table import Table

FILE = Path(__file__).with_name("citations.bib")


def text(tables: Sequence[Table]) -> str:
    """The entries for the methods and data sets of the tables."""
    used = {name for table in tables for line in table.lines
            for name in (line.protocol.method, table.dataset)}
    return "\n\n".join(entry for entry, found in citations() if used & keywords(found)) + "\n"


def paper_of(method: str) -> dict[str, str] | None:
    """The fields of a method's paper: its title, author, url and year, and where it stands."""
    return next((found for _, found in citations() if method in keywords(found)), None)


def citations() -> list[tuple[str, dict[str, str]]]:
    """The entries of citations.bib: their text, without keywords, and their fields."""
    entries = []
    for entry in re.findall(r"^@.*?^\}$", FILE.read_text(encoding="utf-8"),
                            re.MULTILINE | re.DOTALL):
        found = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
        entries.append((re.sub(r"^  keywords = .*\n", "", entry, flags=re.MULTILINE), found))
    return entries


def keywords(found: Mapping[str, str]) -> set[str]:
    """The methods and data sets that an entry is for."""
    return set(found["keywords"].split(", "))
