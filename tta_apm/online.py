"""Online: whether a server answers, and what to do if it does not.

Asking once before a download saves the half minute for which the Hugging Face client retries.
"""

from __future__ import annotations

import urllib.error
import urllib.request

from huggingface_hub import constants

from tta_apm.errors import explain

CONNECT_SECONDS = 5.0


def offline_advice(what: str, then: str) -> str:
    """Advice for a machine without network: get `what` on another machine, `then` do the rest."""
    return f"On a machine that is online get {what} {then}"


def unreachable(url: str) -> str | None:
    """Why `url` of a Hugging Face hub cannot be reached; None if its server answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return None
    except urllib.error.HTTPError:  # an answer, too: the client handles it
        return None
    except OSError as error:
        return explain(error)
