"""choose_device: what DEVICE names, checked before anything is built."""

from __future__ import annotations

import os

import torch

from tta_apm.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that a config's DEVICE means.

    Args:
        name: "auto" is a GPU if there is one, else the CPU; else as torch names devices. Under
            torchrun "auto" and "cuda" are the GPU of the process's local rank.

    Raises:
        UserError: for a device that is not here.
    """
    wanted = name
    if name == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and "LOCAL_RANK" in os.environ:
        wanted = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"DEVICE {name!r} cannot be used here: {str(error).splitlines()[0]}; "
                        "try DEVICE cpu") from error
    return device
