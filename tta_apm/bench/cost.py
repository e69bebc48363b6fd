"""Cost: seconds, peak memory and FLOPs of what a method does to a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


class Stopwatch:
    """Adds up the seconds spent inside `with stopwatch:`, synchronised with the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        synchronize(self.device)
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._start


def synchronize(device: torch.device) -> None:
    """Wait for the work that `device` has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:  # not allowed in some containers: the peak is then the process's
            pass


def peak_memory_mb(device: torch.device) -> float:
    """Peak in MiB since the reset: allocated on a GPU; resident in the whole process on a CPU.

    0 where neither can be read.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**10 for line in status.splitlines()
                 if line.startswith("VmHWM:")), 0.0)


_CLEAR_REFS = Path("/proc/self/clear_refs")


def count_gflops(run: Callable[[], object]) -> float | None:
    """10⁹ floating point operations of `run`, two per multiply-add, forward and backward.

    Only products are counted (linear, convolution, attention), as torch's counter does. None
    before torch 2.3, which cannot be kept from attention kernels that the counter does not see.
    """
    if torch.__version__ < "2.3":
        run()
        return None
    with _countable_attention(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Fused attention kernels are invisible to the counter: use the plain ones meanwhile."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
