"""The device that DEVICE names, checked before anything is built; and what to call it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from tta_apm.errors import UserError, text_of


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
        raise UserError(f"DEVICE {name!r} cannot be used here: {text_of(error)}; "
                        "try DEVICE cpu") from error
    return device


def describe(device: torch.device) -> str:
    """A GPU's name; a CPU's, with the number of threads that torch uses; else the device's type."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' * (threads > 1)}"


def _cpu_name() -> str:
    """The processor's model where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
