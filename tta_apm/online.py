"""Online: whether a server answers, and what to do if it does not.

It is asked once: the Hugging Face client alone tries for half a minute.
"""

from __future__ import annotations

import urllib.error
import urllib.request

from huggingface_hub import constants

from tta_apm.errors import explain

CONNECT_SECONDS = 5.0


def elsewhere(what: str, then: str) -> str:
    """What to do where there is no network: get it on another machine, and then."""
    return f"On a machine that is online get {what} {then}"


def unreachable(url: str) -> str | None:
    """Why `url` of a Hugging Face hub cannot be asked, None if its server answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return None
    except urllib.error.HTTPError:  # an answer too: the client knows what to make of it
        return None
    except OSError as error:
        return explain(error)
