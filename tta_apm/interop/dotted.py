"""dotted: a config of another repository, its sections as dotted keys. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def dotted(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as dotted keys; what JSON has not, such as dates, as text."""
    return dict(_flat(content, ""))


def _flat(content: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            plain = isinstance(value, (str, int, float, list, type(None)))
            yield f"{before}{key}", json.loads(json.dumps(value if plain else str(value),
                                                          default=str))
