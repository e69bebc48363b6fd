"""Files of weights: where they are, what is in them, and how to say that one is missing."""

from __future__ import annotations

import hashlib
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tta_apm.errors import UserError

#: Weights that come with this package.
PACKAGED = Path(__file__).parent / "weights"

# What reading a file as a checkpoint raises if it is none, or not one for that network.
BAD_FILE = (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, TypeError,
            pickle.UnpicklingError, SafetensorError)

CONNECT_SECONDS = 5.0

# torch.load heeds it before its own argument.
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def find(weights: str) -> Path | None:
    """The file that `weights` names: a path, or the bare name of a packaged file; else None."""
    path = Path(weights).expanduser()
    if not weights:
        return None
    if path.is_file():
        return path
    packaged = PACKAGED / weights
    return packaged if path.name == weights and packaged.is_file() else None


def looks_like_file(weights: str) -> bool:
    """Whether someone who writes this means a file: it has a folder or an extension."""
    return Path(weights).name != weights or bool(Path(weights).suffix)


def describe(name: str, file: Path) -> str:
    """`name` and the short hash of `file`, for the record."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return f"{name} {digest.hexdigest()[:16]}"


@contextmanager
def only_weights() -> Iterator[None]:
    """Let no torch.load in here run code of a checkpoint, whatever the library asks for."""
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE_WEIGHTS_ONLY]
        if before is not None:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint, by name.

    Raises:
        UserError: if the file is neither, or holds anything but weights.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
        # DataParallel puts its own name before each.
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    except BAD_FILE as error:
        raise UserError(f"{file} is no checkpoint of weights: {first_line(error)}") from error


def load_into(net: nn.Module, file: Path, *, num_classes: int,
              rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> None:
    """Load the weights of `file` into a classifier of `num_classes`, strictly.

    Args:
        rename: from what the file holds to the names of `net`.

    Raises:
        UserError: if the file has other classes or is of another network.
    """
    found, wanted = rename(read(file)), net.state_dict()
    reshaped = [name for name in wanted.keys() & found.keys()
                if found[name].shape != wanted[name].shape]
    heads = [name for name in reshaped if wanted[name].shape[:1] == (num_classes,)
             and found[name].shape[1:] == wanted[name].shape[1:]]
    if reshaped and reshaped == heads:
        raise UserError(f"{file} has {len(found[heads[0]])} classes, the data set {num_classes}")
    try:
        net.load_state_dict(found)
    except BAD_FILE as error:
        wrong = [*(wanted.keys() ^ found.keys()), *reshaped]
        raise UserError(f"{file} is of another network: {len(wrong)} of its tensors do not match, "
                        f"such as {sorted(wrong)[0] if wrong else first_line(error)}") from error


def from_hub(repo: str, names: Sequence[str]) -> Path:
    """The first file of `names` in a repository of the Hugging Face hub, cached or downloaded.

    The hub's own client tries for 47 seconds when there is no network; this asks once.

    Raises:
        UserError: says what to download and where to put it, if it is not there.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    reason = _unreachable(huggingface_hub.hf_hub_url(repo, names[0]))
    if reason is None:
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, name))
            except LocalEntryNotFoundError as error:
                reason = first_line(error)
            except EntryNotFoundError:  # this repository has it under the next name
                reason = f"the repository has no {name}"
            except Exception as error:  # each version of the client raises its own
                reason = first_line(error)
    choices = " or ".join(names)
    raise UserError(
        f"the weights {choices} of {repo} are not here and cannot be downloaded ({reason}). On a "
        f"machine that is online get {huggingface_hub.hf_hub_url(repo, names[0])} and give the "
        "file's path as WEIGHTS, or let `hf download` fill the cache there and copy it here "
        "(HF_HOME names the folder)")


def _unreachable(url: str) -> str | None:
    """Why `url` cannot be asked, None if its server answers."""
    if hub_constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return None
    except urllib.error.HTTPError:  # an answer too: the client knows what to make of it
        return None
    except OSError as error:
        return first_line(error)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
