"""The mark of a folder in an official layout whose images this package made.

Official images and those made here are equal in distribution only, and their files have the same
names. So a folder of the latter holds a small file that describes them, and records say it too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tta_apm import __version__
from tta_apm.atomic import atomic_write, is_temporary
from tta_apm.data.dataset import Domain
from tta_apm.errors import UserError
from tta_apm.lock import NAME as LOCK

MARK = "made_by_tta_apm.json"


@dataclass(frozen=True)
class Provenance:
    """How the images of a folder were made, the content of its mark."""

    images: str  # description of the clean images
    constants: str  # severities of "cifar" or "imagenet"; "" without corruptions
    frost: str  # source of the frost pictures
    stored: str  # lossy format, e.g. JPEG and its quality; "" for a lossless one
    version: str = __version__  # of this package

    def describe(self, domain: Domain) -> str:
        """How the images of `domain` were made, for the record."""
        if not self.constants:
            return f"{self.images}, written by tta-apm {self.version}"
        text = (f"{self.images}, corrupted beforehand by tta-apm {self.version} with "
                f"{self.constants}-C constants")
        if domain.corruption == "frost":
            text += f", {self.frost} frost pictures"
        return f"{text}, {self.stored}" if self.stored else text


def read_mark(folder: Path) -> Provenance | None:
    """The content of the mark of `folder`, None if there is none."""
    file = folder / MARK
    if not file.is_file():
        return None
    try:
        return Provenance(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}, the mark of a folder that tta-apm made, is corrupt: delete "
                        f"{folder} and make it again") from error


def how_to_finish(folder: Path, name: str) -> str | None:
    """How to complete `folder` of the data set `name`; None if this package did not make it."""
    return f"`tta-apm data make {name}` completes it" if read_mark(folder) else None


def mark_folder(folder: Path, provenance: Provenance) -> None:
    """Mark `folder` as holding images of `provenance` only.

    Raises:
        UserError: if it holds other files, or images that were made with other settings.
    """
    before = read_mark(folder)
    if before is None and folder.is_dir() and any(
            path.name != LOCK and not is_temporary(path) for path in folder.iterdir()):
        raise UserError(f"{folder} holds files that tta-apm did not make, and a table could not "
                        "tell them from what it makes: move them away, or give another --data-dir")
    if before is not None and before != provenance:
        changes = [f"{key} {old!r}, now {new!r}" for (key, old), new
                   in zip(asdict(before).items(), asdict(provenance).values()) if old != new]
        raise UserError(f"{folder} was started with other settings ({'; '.join(changes)}): use "
                        "those, or delete it and make it again")
    atomic_write(folder / MARK, json.dumps(asdict(provenance), indent=1).encode())
