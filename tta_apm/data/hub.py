"""The repositories of CLIP_benchmark: how they are called, and how their files are downloaded."""

from __future__ import annotations

import http.client
import io
import tarfile
import urllib.request
from pathlib import Path

from tta_apm.atomic import atomic_path, remove_leftovers
from tta_apm.errors import UserError
from tta_apm.progress import copy

HUB = "https://huggingface.co/datasets/clip-benchmark"
TIMEOUT = 30.0  # seconds without an answer


def repository(name: str) -> str:
    """Of a data set: wds_vtab-dtd for wds/vtab/dtd."""
    return "wds_" + name.removeprefix("wds/").replace("/", "-")


def url_of(name: str, base: str) -> str:
    """Where the files of a data set are.

    Args:
        name: of the data set, wds/NAME.
        base: a URL that holds repositories, such as HUB; or of one, in CLIP_benchmark's way
            HUB/wds_{dataset_cleaned}/tree/main.

    Raises:
        UserError: if `base` is none that can be downloaded from.
    """
    if not base.startswith(("https://", "http://")):
        raise UserError(f"DATA_DIR {base}: only https:// and http:// can be downloaded from")
    base = base.rstrip("/")
    if base == HUB:
        base += "/wds_{dataset_cleaned}/tree/main"
    if "wds_{dataset_cleaned}" not in base:
        return f"{base}/{repository(name)}"
    # The hub has its pages under tree and its files under resolve.
    return base.replace("wds_{dataset_cleaned}", repository(name)).replace("/tree/", "/resolve/")


def bring(url: str, path: Path) -> None:
    """Download a file that is not here, atomically: what is at `path` is complete.

    Raises:
        UserError: if it is not there, or does not come whole.
    """
    if path.is_file():
        return
    remove_leftovers(path.parent)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_path(path) as temporary:
            expected = answer.headers.get("Content-Length")
            with open(temporary, "wb") as file:
                copy(answer, file, int(expected or 0), path.name)
            size = temporary.stat().st_size
            if expected is not None and size != int(expected):
                raise OSError(f"{size} of {expected} bytes came")
            if expected is None and not answer.chunked and not _ends_as_a_tar(temporary):
                raise OSError("the server does not say how large it is, so that a part of it could "
                              "be taken for the whole; get it by other means")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url} to {path}: {error}; the same command tries again, "
                        "without the files that are there") from error


def _ends_as_a_tar(file: Path) -> bool:
    """Whether a file closes with the two empty blocks that end every archive."""
    end = tarfile.BLOCKSIZE * 2
    with open(file, "rb") as content:
        size = content.seek(0, io.SEEK_END)
        content.seek(-min(size, end), io.SEEK_END)
        return size % tarfile.BLOCKSIZE == 0 and content.read() == bytes(end)
