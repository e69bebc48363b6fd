"""Writing aside, then renaming: a file is whole, or as it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tta_apm.errors import UserError

TEMPORARY = ".tmp"


@contextmanager
def aside(path: Path, ending: str = TEMPORARY) -> Iterator[Path]:
    """Where to write what becomes `path` when it is whole; its folder is made.

    Args:
        ending: added to the name meanwhile. A fixed one is written over by the next try, where a
            kill has left something.

    Raises:
        OSError: as writing does; what was written is then gone.
    """
    temporary = path.with_name(path.name + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_aside(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds all of it or is as it was.

    Raises:
        UserError: if it cannot be written: a folder of somebody else's, a full disk.
    """
    try:
        with aside(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
