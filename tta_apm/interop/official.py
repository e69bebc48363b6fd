"""Official: checks that a row was measured on the images of a leaderboard. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from tta_apm.errors import UserError
from tta_apm.report.results import DomainKey, TableRow

SOME = 5  # of the missing domains, as many as a sentence names
OFFICIAL = "official"  # how descriptions of published files begin


def require(row: TableRow, board: str, domains: Sequence[DomainKey], what: str, num_images: int,
            advice: str) -> None:
    """Raise UserError unless a row has all `domains`, whole and on the published images.

    Args:
        board: the leaderboard's name, for the sentence.
        what: the domains in words.
        num_images: per domain, on the leaderboard.
        advice: how to run what is missing.
    """
    protocol = row.protocol
    missing = sorted({f"{name} {severity}" if severity else name
                      for name, severity in row.missing(domains)})
    if missing:
        some = ", ".join([*missing[:SOME], "..."] if len(missing) > SOME else missing)
        raise UserError(f"row {protocol.row!r} lacks {len(missing)} of {board}'s {what} ({some}): "
                        f"{advice}")
    if protocol.num_images != num_images:
        raise UserError(f"row {protocol.row!r} is over {protocol.num_images} images per domain, "
                        f"{board}'s {protocol.dataset} over {num_images}: run it with "
                        "NUM_IMAGES -1")
    others = sorted({result.record.images_from for result in row.within(domains)
                     if result.record.severity
                     and not result.record.images_from.startswith(OFFICIAL)})
    if others:
        raise UserError(f"row {protocol.row!r} is not on the published images but on {others[0]}: "
                        "put those into DATA_DIR and run it again")
