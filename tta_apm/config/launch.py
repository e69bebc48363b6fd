"""Launch: check the section LAUNCH, before a cluster refuses its values hours later."""

from __future__ import annotations

import re

from yacs.config import CfgNode

from tta_apm.errors import UserError, at_least

# Keys whose values are names or lists of names, which cannot have blanks in Slurm.
NAMES = ("PARTITION", "ACCOUNT", "QOS", "CONSTRAINT")


def check_launch(launch: CfgNode) -> None:
    """Raise UserError for a value that no cluster accepts."""
    at_least(-1, "LAUNCH", GPUS=launch.GPUS)
    at_least(0, "LAUNCH", CPUS=launch.CPUS, ARRAY_LIMIT=launch.ARRAY_LIMIT)
    for key, value in launch.items():
        if any("\n" in str(line) for line in (value if isinstance(value, list) else [value])):
            raise UserError(f"LAUNCH.{key}: give a text of one line")
    for key in NAMES:
        if re.search(r"\s", launch[key]):
            raise UserError(f"LAUNCH.{key} {launch[key]!r}: give a name without blanks")
    if launch.TIME:
        minutes(launch.TIME)
    if launch.MEMORY and not re.fullmatch("[0-9]+[KMGT]?B?", launch.MEMORY, re.IGNORECASE):
        raise UserError(f"LAUNCH.MEMORY {launch.MEMORY!r}: give a number and K, M, G or T, e.g. "
                        "32G")


def minutes(time: str) -> int:
    """The minutes, rounded up, of a time in Slurm's notation.

    Args:
        time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        UserError: for any other text.
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
