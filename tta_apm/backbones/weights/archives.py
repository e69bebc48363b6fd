"""archives: the contents of a file of weights, in any of the common formats.

The format is recognised by the first bytes, not by the file's name: torch's archive (a zip), its
older format (pickles, then the numbers), a pickle alone, TorchScript, numpy's .npz, safetensors.
A format's own library is not used if it could run code or allocate unlimited memory.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tta_apm.backbones.weights.inert import (
    Inert, Malformed, Named, StorageReader, storage_of, unpickle)
from tta_apm.backbones.weights.zero_rows import restore_zero_rows
from tta_apm.errors import UserError, explain

# The first pickle of torch.serialization's older format.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
# A zip may unpack to this multiple of its size, or to this number of bytes.
MAX_RATIO, MAX_UNPACKED_BYTES = 20, 64 << 20
HEAD_BYTES = 1024  # from which the format is recognised
MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
MISSING = "the numbers of its storage {!r} are missing"
UNKNOWN_NAMES = "its storages are named in an unknown way"

# Other files that users pass as weights: their first bytes, and what they are.
_OTHERS = (
    (b"<", "a web page (HTML or XML), such as one that asks for a log-in or a confirmation: get "
           "the file itself"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself: run `git lfs pull`"),
    (b"\x1f\x8b", "an archive of gzip: unpack it and give the file inside"),
    (b"BZh", "an archive of bzip2: unpack it and give the file inside"),
    (b"\xfd7zXZ", "an archive of xz: unpack it and give the file inside"),
    (b"(\xb5/\xfd", "an archive of zstd: unpack it and give the file inside"),
    (b"7z\xbc\xaf", "an archive of 7-Zip: unpack it and give the file inside"),
    (b"Rar!", "an archive of RAR: unpack it and give the file inside"),
    (b"\x89HDF", "a file of HDF5, as Keras writes it: export its weights from torch"),
    (b"GGUF", "a file of GGUF, of a language model"),
    (b"\x93NUMPY", "one array of numpy: save the arrays by name with numpy.savez"))
_TAR = (b"ustar", 257)


class Content:
    """The contents of a file.

    Attributes:
        tree: nested dicts, lists and Inert objects, whose leaves are tensors.
        is_script: whether it is an archive of TorchScript.
    """

    def __init__(self, tree: Any, *, is_script: bool = False) -> None:
        self.tree = tree
        self.is_script = is_script


def read(file: Path) -> Content:
    """The contents of `file`; the values of tensors are not read yet.

    Raises:
        UserError: for a file that is not a checkpoint; it says what the file is and what to do.
    """
    with reading_errors(file):
        with open(file, "rb") as stream:
            head = stream.read(HEAD_BYTES)
            size = file.stat().st_size
            if not head:
                raise Malformed("it is empty: get it again")
            if head.startswith(b"PK"):
                return _zip(file, size)
            if is_safetensors(head):
                return Content(_safetensors(file))
            _refuse_others(head)
            stream.seek(0)
            return Content(_pickles(file, stream, size))


@contextmanager
def reading_errors(file: Path) -> Iterator[None]:
    """A context that turns errors in reading `file` into a UserError with its name."""
    try:
        yield
    except Malformed as error:
        raise UserError(f"{file} is not a checkpoint of weights: {error}") from error
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zlib.error,
            zipfile.BadZipFile, SafetensorError, MemoryError, struct.error) as error:
        raise UserError(f"{file} is not a checkpoint of weights, or is corrupt or incomplete: "
                        f"{explain(error)}; if it was downloaded, get it again") from error


def is_safetensors(head: bytes) -> bool:
    """Whether a file that starts with `head` has the safetensors format."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def metadata(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file."""
    with reading_errors(file), safe_open(file, "pt") as content:
        return content.metadata() or {}


def _refuse_others(head: bytes) -> None:
    """Raise Malformed for a file that starts with `head` and is of a known other kind."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, what in _OTHERS:
        if text.startswith(start):
            raise Malformed(f"it is {what}")
    if head[_TAR[1]:].startswith(_TAR[0]):
        raise Malformed("it is a tar archive: unpack it and give the file inside (a file that "
                        "torch itself wrote as a tar, before 2017, has to be loaded and saved "
                        "anew with torch)")
    if head.isascii() and all(chr(byte).isprintable() or byte in b"\t\r\n" for byte in head):
        raise Malformed(f"it is a text, which starts with {head[:30].decode()!r}")


def _safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as content:
        return restore_zero_rows({name: content.get_tensor(name) for name in content.keys()})


# Zip: torch's archive, TorchScript, .npz

class _ZipStorages:
    """The storages of torch's archive."""

    def __init__(self, file: Path, folder: str) -> None:
        self.file = file
        self.folder = folder
        self.contents: dict[str, bytearray] = {}  # views of one storage share it

    def read(self, key: str) -> bytearray:
        if key not in self.contents:
            self.contents[key] = self._read(key)
        return self.contents[key]

    def _read(self, key: str) -> bytearray:
        with zipfile.ZipFile(self.file) as archive:
            try:
                member = archive.getinfo(f"{self.folder}data/{key}")
            except KeyError:
                raise Malformed(MISSING.format(key)) from None
            return bytearray(archive.read(member))


def _zip(file: Path, size: int) -> Content:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise Malformed("it is incomplete: the end of its archive is missing; get it again"
                        ) from error
    with archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max(MAX_RATIO * size, MAX_UNPACKED_BYTES):
            raise Malformed(f"it would unpack to {unpacked / size:.0f} times its size")
        names = archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) == 1:
            folder = pickles[0].removesuffix("data.pkl")
            _check_byte_order(archive, folder)
            tree = unpickle(io.BytesIO(archive.read(pickles[0])),
                            _loader(_ZipStorages(file, folder)))
            return Content(tree, is_script=any(name.startswith(f"{folder}code/")
                                               for name in names))
        if names and all(name.endswith(".npy") for name in names):
            return Content({name.removesuffix(".npy"): _npy(archive, name) for name in names})
    shown = ", ".join(names[:3]) or "nothing"
    raise Malformed(f"it is a zip archive of other things ({shown}): unpack it and give the file "
                    "of weights inside")


def _check_byte_order(archive: zipfile.ZipFile, folder: str) -> None:
    name = f"{folder}byteorder"
    if name in archive.namelist() and archive.read(name).decode() != sys.byteorder:
        raise Malformed("it was written by a machine of the other byte order: load it with torch "
                        "and save it as .safetensors")


def _loader(source: StorageReader) -> Callable[[Any], Any]:
    def load(key: Any) -> Any:
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
            raise Malformed(UNKNOWN_NAMES)
        _, kind, name, _, num = key
        return storage_of(source, kind, name, num)
    return load


def _npy(archive: zipfile.ZipFile, name: str) -> Any:
    """The array of numbers in an .npy file; an Inert for an array of objects, a pickle."""
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                  else np.lib.format.read_array_header_2_0)
        shape, fortran, dtype = header(stream)
        if dtype.kind not in "fiub":
            return Inert(Named("numpy", str(dtype)))
        content = stream.read(prod(shape) * dtype.itemsize)
    numbers = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(numbers.astype(dtype.newbyteorder("=")))


# Pickles: torch's older format, and one alone

class _TrailingStorages:
    """The storages of torch's older format, which follow its pickles."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.spans: dict[str, tuple[int, int]] = {}  # offset and number of bytes
        self.contents: dict[str, bytearray] = {}  # views of one storage share it

    def read(self, key: str) -> bytearray:
        if key not in self.spans:
            raise Malformed(MISSING.format(key))
        if key not in self.contents:
            offset, num_bytes = self.spans[key]
            with open(self.file, "rb") as stream:
                stream.seek(offset)
                self.contents[key] = bytearray(stream.read(num_bytes))
        return self.contents[key]


def _pickles(file: Path, stream: BinaryIO, size: int) -> Any:
    source = _TrailingStorages(file)
    sizes: dict[str, int] = {}  # bytes of a number in each storage

    def load(key: Any) -> Any:
        if not isinstance(key, tuple) or len(key) < 5 or key[0] not in ("storage", "module"):
            raise Malformed(UNKNOWN_NAMES)
        if key[0] == "module":
            return key[1]
        _, kind, name, _, num, *view = key
        if view and view[0] is not None:
            raise Malformed("its storages are parts of others, as torch wrote before 2017: load "
                            "it with torch and save it as .safetensors")
        storage = storage_of(source, kind, name, num)
        sizes[storage.key] = storage.dtype.itemsize
        return storage

    first = unpickle(stream, load)
    if first != MAGIC_NUMBER:
        return first
    for _ in ("version", "system"):
        unpickle(stream, load)
    tree = unpickle(stream, load)
    for key in unpickle(stream, load):
        count = stream.read(8)
        offset = stream.tell()
        num = struct.unpack("<q", count)[0] if len(count) == 8 else -1
        num_bytes = num * sizes.get(str(key), 1)
        if num_bytes < 0 or offset + num_bytes > size:
            raise Malformed("it is incomplete: get it again")
        source.spans[str(key)] = (offset, num_bytes)
        stream.seek(offset + num_bytes)
    return tree
