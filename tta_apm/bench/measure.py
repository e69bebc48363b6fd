"""Measure: seconds, peak memory and FLOPs of a method's calls."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


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

    def time(self, function: Callable[..., T], *arguments: object) -> T:
        """Return `function(*arguments)`, timed."""
        with self:
            return function(*arguments)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        try:
            _CLEAR_REFS.write_text("5", encoding="ascii")
        except OSError:  # forbidden in some containers: the peak is then that of the whole process
            pass


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB since the reset: allocated on a GPU, or resident in the process on a CPU.

    0 if it cannot be read.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    return _of_process("VmHWM:")


def memory_in_use_mb(device: torch.device) -> float:
    """As peak_memory_mb, at this moment."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MB
    return _of_process("VmRSS:")


def _of_process(key: str) -> float:
    """A value of /proc/self/status in MiB; 0 on systems without it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**10 for line in status.splitlines()
                 if line.startswith(key)), 0.0)


_CLEAR_REFS = Path("/proc/self/clear_refs")
MB = 2**20


def size_mb(network: nn.Module) -> float:
    """The size of the parameters and buffers of `network` in MiB; shared ones count once."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values()) / MB


def keep_only(wanted: Collection[str], networks: Mapping[str, nn.Module],
              device: torch.device) -> None:
    """Move the `wanted` networks to `device` and all others to the CPU."""
    if device.type == "cpu":
        return
    for name, network in sorted(networks.items(), key=lambda item: item[0] in wanted):
        network.to(device if name in wanted else "cpu")  # the unwanted first, to free memory


class Flops(NamedTuple):
    """Floating point operations of products (linear, convolution, attention), two per
    multiply-add."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def count_flops(run: Callable[[], object]) -> Flops | None:
    """Count the FLOPs of `run` with torch's counter.

    The gradient of a convolution that was vmapped over B sets of weights is counted B times too
    often: give methods that adapt to each image alone a single image.

    Returns:
        None before torch 2.3, which uses attention kernels that the counter does not see.
    """
    if torch.__version__ < "2.3":
        run()
        return None
    with _countable_attention(), FlopCounterMode(display=False) as counter:
        with _gradients_counted(counter) as backward:
            run()
    return Flops(counter.get_total_flops() - sum(backward), sum(backward))


def count_gflops(run: Callable[[], object]) -> float | None:
    """The FLOPs of `run`, forward and backward, in 10⁹; see count_flops."""
    flops = count_flops(run)
    return None if flops is None else flops.total / 1e9


@contextmanager
def _gradients_counted(counter: FlopCounterMode) -> Iterator[list[float]]:
    """A list that collects what each backward pass inside the `with` block adds to `counter`."""
    counts: list[float] = []

    @contextmanager
    def counted() -> Iterator[None]:
        before = counter.get_total_flops()
        yield
        counts.append(counter.get_total_flops() - before)

    with around_gradients(counted):
        yield counts


@contextmanager
def around_gradients(watch: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Enter `watch()` around each backward pass inside the `with` block, also under vmap."""
    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **keywords: Any) -> Any:
            with watch():
                return function(*args, **keywords)
        return run

    # torch has no hook for the start of a backward pass, so wrap the two functions that start one
    # (Tensor.backward calls the first).
    originals = torch.autograd.backward, torch.autograd.grad
    torch.autograd.backward, torch.autograd.grad = (watched(function) for function in originals)
    try:
        yield
    finally:
        torch.autograd.backward, torch.autograd.grad = originals


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Use plain attention kernels inside the `with` block: the counter does not see fused ones."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
