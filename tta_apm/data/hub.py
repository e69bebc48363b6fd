"""CLIP_benchmark's repositories: their names, and downloads from a Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

from tta_apm.errors import UserError, explain
from tta_apm.online import unreachable

HOST = "https://huggingface.co"
HUB = f"{HOST}/datasets/clip-benchmark"

# OWNER's URL, or CLIP_benchmark's own form of it.
_BASE = re.compile(
    r"(https?://.+)/datasets/([^/]+?)(?:/wds_\{dataset_cleaned\}(?:/tree/(.+?))?)?/?")


class Repository(NamedTuple):
    """A repository of a data set.

    Attributes:
        name: OWNER/NAME.
        endpoint: URL of its hub, None for that of HF_ENDPOINT or else huggingface.co.
    """

    name: str
    revision: str
    endpoint: str | None


def repository_name(name: str) -> str:
    """The name of a data set's repository, e.g. wds_vtab-dtd for wds/vtab/dtd."""
    return "wds_" + name.removeprefix("wds/").replace("/", "-")


def repository(name: str, base: str) -> Repository:
    """The repository of a data set.

    Args:
        name: of the data set, wds/NAME.
        base: URL of an owner's repositories, e.g. HUB; or CLIP_benchmark's form
            HUB/wds_{dataset_cleaned}/tree/REVISION.

    Raises:
        UserError: if `base` is not such a URL.
    """
    found = _BASE.fullmatch(base)
    if found is None:
        raise UserError(f"DATA_DIR {base}: only data sets of a Hugging Face hub can be downloaded, "
                        f"e.g. from {HUB}; get others by hand and give their folder")
    endpoint, owner, revision = found.groups()
    return Repository(f"{owner}/{repository_name(name)}", revision or "main",
                      None if endpoint == HOST else endpoint)


def download(source: Repository, file: str, folder: Path) -> None:
    """Download a file into `folder`, unless it exists; an existing file is complete.

    Raises:
        UserError: if the hub cannot be reached or does not have the file, or if the connection
            breaks.
    """
    if (folder / file).is_file():
        return
    url = huggingface_hub.hf_hub_url(source.name, file, repo_type="dataset",
                                     revision=source.revision, endpoint=source.endpoint)
    reason = unreachable(url)
    if reason is None:
        try:
            huggingface_hub.hf_hub_download(
                source.name, file, repo_type="dataset", revision=source.revision,
                local_dir=folder, endpoint=source.endpoint,
                token=None if source.endpoint is None else False)  # no token for a mirror
        except Exception as error:  # versions of the client raise different errors
            reason = explain(error.__cause__ or error)  # the cause is the server's answer
    if reason is not None:
        raise UserError(f"cannot download {url} to {folder}: {reason}; the same command goes on "
                        "with what is missing")
