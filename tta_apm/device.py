"""Device: choose the device that DEVICE names, and describe it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from tta_apm.errors import UserError, text_of


def choose_device(name: str) -> torch.device:
    """The torch device of a config's DEVICE.

    Args:
        name: "auto" (a GPU if there is one, else the CPU) or a name of torch's. Under torchrun,
            "auto" and "cuda" mean the GPU of the process's local rank.

    Raises:
        UserError: if the device cannot be used.
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
    """The name of a GPU; the name of a CPU and torch's number of threads; else the device type."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} {'threads' if threads > 1 else 'thread'}"


def _cpu_name() -> str:
    """The processor's model on Linux, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
