"""dotted: a nested config of another repository with dotted keys. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def dotted(content: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config as one dict, e.g. {"A": {"B": 1}} as {"A.B": 1}.

    Values that JSON does not have, e.g. dates, become text.
    """
    return dict(_flat(content, ""))


def _flat(content: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            plain = isinstance(value, (str, int, float, list, type(None)))
            yield f"{before}{key}", json.loads(json.dumps(value if plain else str(value),
                                                          default=str))
