"""Weights from the Hugging Face hub, and what to do where it cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

from tta_apm.errors import UserError, explain
from tta_apm.online import offline_advice, unreachable


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
    reason = unreachable(huggingface_hub.hf_hub_url(repo, names[0]))
    if reason is None:
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, name))
            except LocalEntryNotFoundError as error:
                reason = explain(error)
            except EntryNotFoundError:  # this repository has it under the next name
                reason = f"the repository has no {name}"
            except Exception as error:  # each version of the client raises its own
                reason = explain(error)
    choices = " or ".join(names)
    advice = offline_advice(
        huggingface_hub.hf_hub_url(repo, names[0]),
        "and give the file's path as WEIGHTS, or let `hf download` fill the cache there and copy "
        "it here (HF_HOME names the folder)")
    raise UserError(f"the weights {choices} of {repo} are not here and cannot be downloaded "
                    f"({reason}). {advice}")
