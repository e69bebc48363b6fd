"""download: corrupted data sets from Zenodo, checked before they are unpacked.

robustbench would use an interrupted download and does not check the paths of members. Here pooch
downloads to a temporary file, size and checksum are compared with Zenodo's, each member is checked
before any is unpacked, and a folder is renamed when it is complete.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pooch

from tta_apm import __version__
from tta_apm.atomic import TEMPORARY, atomic_path
from tta_apm.data.official import Archive, declared, official_of
from tta_apm.data.provenance import MARK
from tta_apm.errors import UserError, explain, nearest
from tta_apm.lock import locked
from tta_apm.online import offline_advice
from tta_apm.progress import bar

ZENODO = "https://zenodo.org"
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # without data, after which the connection counts as broken
CHUNK = 1 << 18  # bytes
# Zenodo allows more requests to clients that name themselves.
HEADERS = {"User-Agent": f"tta-apm/{__version__}"}


class Remote(NamedTuple):
    """An archive on Zenodo."""

    url: str
    size: int  # bytes
    md5: str


class Download:
    """The download of the missing archives of a data set.

    Args:
        name: of the data set.
        data_dir: folder of the data sets.

    Attributes:
        missing: the archives of which a folder is missing.
        folder: the folder into which the archives are unpacked.

    Raises:
        UserError: for a data set that declares no record, and for a folder of images that
            `tta-apm data make` wrote.
    """

    def __init__(self, name: str, data_dir: Path) -> None:
        official = official_of(name)
        if official is None or official.zenodo is None:
            known = [other for other, files in declared().items() if files.zenodo]
            raise UserError(f"{name!r} cannot be downloaded here ({nearest(name, known)}); "
                            f"`tta-apm data check {name}` says what to get from where")
        record = official.zenodo
        self.page = f"{ZENODO}/records/{record.number}"
        self.record = f"{ZENODO}/api/records/{record.number}"
        self.folder = data_dir / record.folder
        if record.folder and (self.folder / MARK).is_file():
            raise UserError(f"{self.folder} holds images that tta-apm made: move it away first")
        self.missing = [archive for archive in record.archives if self._absent(archive)]
        self.remote: dict[str, Remote] = {}

    def ask(self) -> int:
        """Ask Zenodo for what is missing; returns its bytes.

        Raises:
            UserError: that says what to do instead, if Zenodo cannot be reached.
        """
        answer = io.BytesIO()
        try:
            pooch.HTTPDownloader(timeout=CONNECT_SECONDS, headers=HEADERS)(
                self.record, answer, None)
            files = {file["key"]: file for file in json.loads(answer.getvalue())["files"]}
            for file, _ in self.missing:
                entry = files[file]
                self.remote[file] = Remote(entry["links"]["self"], int(entry["size"]),
                                           entry["checksum"].removeprefix("md5:"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            names = ", ".join(file for file, _ in self.missing)
            advice = offline_advice(names, f"from there, and unpack it here in {self.folder}")
            raise UserError(f"{self.page} cannot be asked ({error}). {advice}") from error
        return sum(remote.size for remote in self.remote.values())

    def run(self) -> None:
        """Download, check and unpack what is missing; `ask()` was called before.

        Raises:
            UserError: if the disk has no room, if the connection breaks, or for an archive that is
                not Zenodo's.
        """
        with locked(self.folder, self.record):
            self._run()

    def _run(self) -> None:
        for archive in self.missing:
            if not self._absent(archive):
                continue  # another process got it while this one waited
            file, remote = self.folder / archive.file, self.remote[archive.file]
            found = file.is_file()  # downloaded by other means: it is kept
            self._require_room(remote.size * (1 if found else 2))
            if not found:
                _download(remote, file)
            elif flaw := _flaw(file, remote):
                raise UserError(f"{file} is incomplete or corrupt: {flaw}, as after an interrupted "
                                "download. Delete it, then run again")
            print(f"Unpacking {file}", flush=True)
            unpack(file, self._absent(archive), self.folder)
            if not found:
                file.unlink()

    def _absent(self, archive: Archive) -> list[str]:
        return [name for name in archive.folders if not (self.folder / name).is_dir()]

    def _require_room(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise UserError(f"{self.folder} has room for {gigabytes(free)}, but the "
                            f"download and what is in it take {gigabytes(size)}")


def _download(remote: Remote, file: Path) -> None:
    """Download `file`, which is complete or absent afterwards."""
    try:
        with atomic_path(file) as temporary:
            with open(temporary, "wb") as content, bar(remote.size, "B", file.name) as shown:
                pooch.HTTPDownloader(progressbar=shown, chunk_size=CHUNK, timeout=SILENT_SECONDS,
                                     headers=HEADERS)(remote.url, content, None)
            if flaw := _flaw(temporary, remote):
                raise OSError(flaw)
    except (OSError, ValueError) as error:
        raise UserError(f"the download of {file.name} failed ({explain(error)}): the same command "
                        "tries again") from error


def _flaw(file: Path, remote: Remote) -> str | None:
    """How `file` differs from Zenodo's, None if it does not."""
    size = file.stat().st_size
    if size != remote.size:
        return f"it has {size} of {remote.size} bytes"
    same = pooch.file_hash(str(file), alg="md5") == remote.md5
    return None if same else "its checksum is not Zenodo's"


def unpack(file: Path, folders: Sequence[str], target: Path) -> None:
    """Unpack `folders` of the tar archive `file` into `target`, without their parent folders.

    Raises:
        UserError: if a member is neither file nor folder or points outside (before anything is
            written); if the archive is incomplete or lacks a folder.
    """
    part = target / f"{file.name}.unpacked{TEMPORARY}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with tarfile.open(file) as archive:
            for member in _members(archive):
                _require_inside(member, file)
        with tarfile.open(file) as archive:
            # Python before 3.10.12 and 3.11.4 has no filter and relies on the check above.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            for member in _members(archive):
                path = _below(folders, member)
                if path and member.isfile():
                    member.name = str(path)
                    archive.extract(member, part, set_attrs=False)
        for name in folders:
            if not (part / name).is_dir():
                raise UserError(f"{file} holds no {name}")
            os.replace(part / name, target / name)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{file} is incomplete or no archive ({explain(error)}): delete it"
                        ) from error
    except (OSError, ValueError) as error:  # a full disk; names that cannot be, or are twice there
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{file} cannot be unpacked in {target}: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        yield member
        # tarfile keeps all members: a gigabyte for the million files of ImageNet-C.
        archive.members = []  # type: ignore[attr-defined]


def _require_inside(member: tarfile.TarInfo, file: Path) -> None:
    path = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{file} is unsafe: its member {member.name!r} is a link or points outside "
                        "of the folder. Nothing was unpacked")


def _below(folders: Sequence[str], member: tarfile.TarInfo) -> Path | None:
    """The path of a member, starting with one of `folders`; None if it is in none of them."""
    parts = PurePosixPath(member.name).parts
    start = next((index for index, part in enumerate(parts) if part in folders), None)
    return None if start is None else Path(*parts[start:])


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
