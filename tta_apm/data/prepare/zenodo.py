"""download: CIFAR-10-C, CIFAR-100-C and ImageNet-C from Zenodo, checked before they are unpacked.

robustbench's own way is not ours: a download that breaks off leaves half an archive that it then
takes for a whole one, and it unpacks what an archive says, wherever that points. Here an archive is
loaded aside, its size and checksum are compared with Zenodo's, each member's name is looked at, and
a folder is renamed into its place when it is whole.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tta_apm.atomic import TEMPORARY, atomic_path
from tta_apm.data import cifar, imagenet
from tta_apm.data.provenance import MARK
from tta_apm.errors import UserError, nearest
from tta_apm.lock import locked
from tta_apm.progress import copy

ZENODO = "https://zenodo.org"
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # without a byte: the connection is broken


class Archive(NamedTuple):
    """A file of a record, and the folders in it."""

    file: str
    folders: tuple[str, ...]


class Source(NamedTuple):
    """Where a data set comes from, and which folder of DATA_DIR its archives' folders go to."""

    record: str
    place: str
    archives: tuple[Archive, ...]


def _cifar_c(which: cifar.Cifar) -> Source:
    folder = which.corrupted[0]
    return Source(which.record, "", (Archive(f"{folder}.tar", (folder,)),))


SOURCES = {
    "cifar10_c": _cifar_c(cifar.CIFAR10),
    "cifar100_c": _cifar_c(cifar.CIFAR100),
    "imagenet_c": Source(imagenet.C_RECORD, imagenet.C_FOLDERS[0], (
        Archive("noise.tar", ("gaussian_noise", "shot_noise", "impulse_noise")),
        Archive("blur.tar", ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")),
        Archive("weather.tar", ("snow", "frost", "fog", "brightness")),
        Archive("digital.tar", ("contrast", "elastic_transform", "pixelate",
                                "jpeg_compression")))),
}


class Remote(NamedTuple):
    """An archive as Zenodo has it."""

    url: str
    size: int  # bytes
    md5: str


class Download:
    """What is missing of a data set, and where it comes from.

    Args:
        name: of the data set, one of SOURCES.
        data_dir: where the data sets lie.

    Attributes:
        missing: the archives that hold a folder which is not here.
        folder: where the folders go to.

    Raises:
        UserError: for another name, and for a folder of images that were made here.
    """

    def __init__(self, name: str, data_dir: Path) -> None:
        if name not in SOURCES:
            raise UserError(f"{name!r} cannot be downloaded here ({nearest(name, SOURCES)}); "
                            f"`tta-apm data check {name}` says what to get from where")
        source = SOURCES[name]
        self.page = f"{ZENODO}/records/{source.record}"
        self.record = f"{ZENODO}/api/records/{source.record}"
        self.folder = data_dir / source.place
        if source.place and (self.folder / MARK).is_file():
            raise UserError(f"{self.folder} holds images that tta-apm made: move it away first")
        self.missing = [archive for archive in source.archives if self._absent(archive)]
        self.remote: dict[str, Remote] = {}

    def ask(self) -> int:
        """Ask Zenodo for what is missing; returns its bytes.

        Raises:
            UserError: that says what to do instead, if Zenodo cannot be reached.
        """
        try:
            with urllib.request.urlopen(self.record, timeout=CONNECT_SECONDS) as answer:
                files = {file["key"]: file for file in json.load(answer)["files"]}
            for file, _ in self.missing:
                entry = files[file]
                self.remote[file] = Remote(entry["links"]["self"], int(entry["size"]),
                                           entry["checksum"].removeprefix("md5:"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            names = ", ".join(file for file, _ in self.missing)
            raise UserError(
                f"{self.page} cannot be asked ({error}). On a machine that is online get {names} "
                f"from there, and unpack it here in {self.folder}") from error
        return sum(remote.size for remote in self.remote.values())

    def run(self) -> None:
        """Load, check and unpack what is missing; `ask()` was called before.

        Raises:
            UserError: for want of room, if the connection breaks, or for an archive that is not
                Zenodo's.
        """
        with locked(self.folder, self.record):
            self._run()

    def _run(self) -> None:
        for archive in self.missing:
            if not self._absent(archive):
                continue  # of another process, while this one waited for it
            file, remote = self.folder / archive.file, self.remote[archive.file]
            found = file.is_file()  # loaded by other means: it is kept
            self._require_room(remote.size * (1 if found else 2))
            if not found:
                _load(remote, file)
            elif flaw := _flaw(file, remote):
                raise UserError(f"{file} is not whole: {flaw}, as where a download was "
                                "interrupted. Delete it, then run again")
            print(f"Unpacking {file}", flush=True)
            unpack(file, self._absent(archive), self.folder)
            if not found:
                file.unlink()

    def _absent(self, archive: Archive) -> list[str]:
        return [name for name in archive.folders if not (self.folder / name).is_dir()]

    def _require_room(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise UserError(f"{self.folder} has room for {gigabytes(free)}, but loading and "
                            f"unpacking takes {gigabytes(size)}")


def _load(remote: Remote, file: Path) -> None:
    """Load `file` aside."""
    try:
        with urllib.request.urlopen(remote.url, timeout=SILENT_SECONDS) as answer, \
                atomic_path(file) as temporary:
            with open(temporary, "wb") as content:
                copy(answer, content, remote.size, file.name)
            if flaw := _flaw(temporary, remote):
                raise OSError(flaw)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"the download of {file.name} failed ({error}): the same command tries "
                        "again") from error


def _flaw(file: Path, remote: Remote) -> str | None:
    """How `file` differs from what Zenodo has, None if it does not."""
    size = file.stat().st_size
    if size != remote.size:
        return f"it has {size} of {remote.size} bytes"
    digest = hashlib.md5()
    with open(file, "rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    return None if digest.hexdigest() == remote.md5 else "its checksum is not Zenodo's"


def unpack(file: Path, folders: Sequence[str], target: Path) -> None:
    """Unpack `folders` of the tar archive `file` into `target`, whatever lies above them in it.

    Raises:
        UserError: if a member is neither file nor folder or points outside, before anything is
            written; if the archive is not whole or lacks a folder.
    """
    part = target / f"{file.name}.unpacked{TEMPORARY}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with tarfile.open(file) as archive:
            for member in _members(archive):
                _place(member, folders, file)
        with tarfile.open(file) as archive:
            for member in _members(archive):
                place = _place(member, folders, file)
                content = archive.extractfile(member) if place else None
                if content is not None and place is not None:
                    path = part / place
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with content, open(path, "wb") as copy:
                        shutil.copyfileobj(content, copy)
        for name in folders:
            if not (part / name).is_dir():
                raise UserError(f"{file} holds no {name}")
            os.replace(part / name, target / name)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{file} is no whole archive ({error}): delete it") from error
    except (OSError, ValueError) as error:  # a full disk; names that cannot be, or are twice there
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{file} cannot be unpacked in {target}: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        yield member
        # It keeps all: a gigabyte for the million files of ImageNet-C.
        archive.members = []  # type: ignore[attr-defined]


def _place(member: tarfile.TarInfo, folders: Sequence[str], file: Path) -> Path | None:
    """Where a member goes, from one of `folders` on; None if it lies in none of them."""
    path = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{file} is not to be trusted: its member {member.name!r} is a link or "
                        "points outside. Nothing was unpacked")
    start = next((place for place, part in enumerate(path.parts) if part in folders), None)
    return None if start is None else Path(*path.parts[start:])


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
