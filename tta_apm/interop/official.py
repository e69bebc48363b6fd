"""Official: checks that a row was measured on the images of a leaderboard. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from tta_apm.errors import UserError
from tta_apm.report.protocol import DomainKey
from tta_apm.report.results import TableRow

SOME = 5  # number of missing domains that an error message names
OFFICIAL = "official"  # the first word in descriptions of published files


def require(row: TableRow, board: str, domains: Sequence[DomainKey], what: str, num_images: int,
            advice: str) -> None:
    """Raise UserError unless a row has all `domains`, complete and on the published images.

    Args:
        row: the row.
        board: name of the leaderboard, for the error message.
        domains: the domains of the leaderboard.
        what: these domains in words.
        num_images: images per domain on the leaderboard.
        advice: how to run missing domains.
    """
    protocol = row.protocol
    missing = sorted({f"{name} {severity}" if severity else name
                      for name, severity in row.missing(domains)})
    if missing:
        some = ", ".join([*missing[:SOME], "..."] if len(missing) > SOME else missing)
        raise UserError(f"row {protocol.row!r} lacks {len(missing)} of {board}'s {what} ({some}): "
                        f"{advice}")
    if protocol.num_images != num_images:
        raise UserError(f"row {protocol.row!r} has {protocol.num_images} images per domain, "
                        f"{board}'s {protocol.dataset} has {num_images}: run it with "
                        "NUM_IMAGES -1")
    others = sorted({result.record.images_from for result in row.within(domains)
                     if result.record.severity
                     and not result.record.images_from.startswith(OFFICIAL)})
    if others:
        raise UserError(f"row {protocol.row!r} is not on the published images but on {others[0]}: "
                        "put those into DATA_DIR and run it again")
