"""Weights from the Hugging Face hub, and advice if it cannot be reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

from tta_apm.errors import UserError, explain
from tta_apm.online import offline_advice, unreachable


def from_hub(repo: str, names: Sequence[str]) -> Path:
    """The first file of `names` that a repository of the Hugging Face hub has.

    It is taken from the cache or downloaded. Without a network the hub's own client would retry for
    47 seconds; this tries once.

    Raises:
        UserError: if it is not cached and cannot be downloaded; it says how to get it.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    reason = unreachable(huggingface_hub.hf_hub_url(repo, names[0]))
    if reason is None:
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, name))
            except LocalEntryNotFoundError as error:
                reason = explain(error)
            except EntryNotFoundError:  # the repository may have the next name
                reason = f"the repository has no {name}"
            except Exception as error:  # versions of the client raise different errors
                reason = explain(error)
    choices = " or ".join(names)
    advice = offline_advice(
        huggingface_hub.hf_hub_url(repo, names[0]),
        "and give the file's path as WEIGHTS, or let `hf download` fill the cache there and copy "
        "it here (HF_HOME names the folder)")
    raise UserError(f"the weights {choices} of {repo} are not cached and cannot be downloaded "
                    f"({reason}). {advice}")
