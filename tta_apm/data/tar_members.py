"""Member: a file in a tar archive, read without unpacking the archive."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, NamedTuple

from tta_apm.errors import UserError

END = 1024  # zero bytes at the end of an archive
MAX_SIZE = 2 ** 28  # bytes of a member that can be read


class Member(NamedTuple):
    """A file in an archive, with the `open` and `str` of a Path."""

    archive: Path
    name: str
    offset: int  # of its content, in bytes
    size: int

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        """Its content; raises UserError if that is larger than MAX_SIZE."""
        if self.size > MAX_SIZE:
            raise UserError(f"{self} has {self.size} bytes, too many for an image or a label")
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return BytesIO(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.name} in {self.archive}"


def members(archive: Path) -> Iterator[Member]:
    """The files in an archive, in its order; links and devices are skipped.

    Raises:
        UserError: if it is not an archive, or, after the last file, if it is incomplete.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                if info.isreg():
                    yield Member(archive, info.name, info.offset_data, info.size)
        # tarfile raises no error for an archive that ends between two files.
        with open(archive, "rb") as file:
            file.seek(-END, os.SEEK_END)
            if any(file.read()):
                raise tarfile.ReadError("its end is missing")
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} is corrupt, incomplete or not a tar archive: "
                        f"{_explain(archive, error)}. Delete it and get it again") from error


def _explain(archive: Path, error: Exception) -> str:
    if archive.is_file():
        with open(archive, "rb") as file:
            if file.read(30).startswith(b"version https://git-lfs"):
                return "git lfs left a pointer to it: 'git lfs pull' downloads it"
    return str(error)
