"""LAUNCH: what workers get; checked before a cluster refuses it, hours later perhaps."""

from __future__ import annotations

import re

from yacs.config import CfgNode

from tta_apm.errors import UserError, at_least

# Keys whose values are names or lists of names, in which Slurm takes no blanks.
NAMES = ("PARTITION", "ACCOUNT", "QOS", "CONSTRAINT")


def check_launch(launch: CfgNode) -> None:
    """Raise UserError for a value of the section LAUNCH that no cluster takes."""
    at_least(-1, "LAUNCH", GPUS=launch.GPUS)
    at_least(0, "LAUNCH", CPUS=launch.CPUS, ARRAY_LIMIT=launch.ARRAY_LIMIT)
    for key, value in launch.items():
        if any("\n" in str(line) for line in (value if isinstance(value, list) else [value])):
            raise UserError(f"LAUNCH.{key}: a text of one line is wanted")
    for key in NAMES:
        if re.search(r"\s", launch[key]):
            raise UserError(f"LAUNCH.{key} {launch[key]!r}: a name without blanks is wanted")
    if launch.TIME:
        minutes(launch.TIME)
    if launch.MEMORY and not re.fullmatch("[0-9]+[KMGT]?B?", launch.MEMORY, re.IGNORECASE):
        raise UserError(f"LAUNCH.MEMORY {launch.MEMORY!r}: give a number and K, M, G or T, e.g. "
                        "32G")


def minutes(time: str) -> int:
    """Of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; rounded up.

    Raises:
        UserError: for another text.
    """
    days, dash, clock = time.rpartition("-")
    parts = clock.split(":")
    if not all(re.fullmatch("[0-9]{1,6}", part) for part in [*parts, *([days] if dash else [])]) \
            or len(parts) > 3:
        raise UserError(f"LAUNCH.TIME {time!r}: give minutes, hours:minutes:seconds or "
                        "days-hours:minutes:seconds")
    numbers = list(map(int, parts))
    if dash or len(numbers) == 3:
        hours, mins, seconds = [*numbers, 0, 0][:3]
    else:
        hours, mins, seconds = 0, *[*numbers, 0][:2]
    return 1440 * int(days or 0) + 60 * hours + mins + (seconds > 0)
