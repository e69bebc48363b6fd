"""Cost: seconds, peak memory and FLOPs of what a method does to a batch."""

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
        """What `function(*arguments)` gives, timed."""
        with self:
            return function(*arguments)


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
            _CLEAR_REFS.write_text("5", encoding="ascii")
        except OSError:  # not allowed in some containers: the peak is then the process's
            pass


def peak_memory_mb(device: torch.device) -> float:
    """Peak in MiB since the reset: allocated on a GPU; resident in the whole process on a CPU.

    0 where neither can be read.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    return _of_process("VmHWM:")


def memory_in_use_mb(device: torch.device) -> float:
    """As peak_memory_mb, of this moment."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MB
    return _of_process("VmRSS:")


def _of_process(key: str) -> float:
    """What Linux tells of the process's memory, in MiB; 0 elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**10 for line in status.splitlines()
                 if line.startswith(key)), 0.0)


_CLEAR_REFS = Path("/proc/self/clear_refs")
MB = 2**20


def size_mb(network: nn.Module) -> float:
    """The parameters and buffers of `network` in MiB, those that occur twice counted once."""
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values()) / MB


def keep_only(wanted: Collection[str], networks: Mapping[str, nn.Module],
              device: torch.device) -> None:
    """Keep those of `networks` that are `wanted` on `device`, and put the others aside.

    On a CPU all stay as they are.
    """
    if device.type == "cpu":
        return
    for name, network in sorted(networks.items(), key=lambda item: item[0] in wanted):
        network.to(device if name in wanted else "cpu")  # first those that make room


class Flops(NamedTuple):
    """Floating point operations, two per multiply-add; products only."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def count_flops(run: Callable[[], object]) -> Flops | None:
    """What `run` computes, forward passes and gradients apart.

    Only products are counted (linear, convolution, attention), as torch's counter does. None
    before torch 2.3, which cannot be kept from attention kernels that the counter does not see.
    The gradient of a convolution that was vmapped over B sets of weights is counted B times too
    often: give methods that adapt each image alone a single image.
    """
    if torch.__version__ < "2.3":
        run()
        return None
    with _countable_attention(), FlopCounterMode(display=False) as counter:
        with _gradients_counted(counter) as backward:
            run()
    return Flops(counter.get_total_flops() - sum(backward), sum(backward))


def count_gflops(run: Callable[[], object]) -> float | None:
    """10⁹ floating point operations of `run`, forward and backward: see count_flops."""
    flops = count_flops(run)
    return None if flops is None else flops.total / 1e9


@contextmanager
def _gradients_counted(counter: FlopCounterMode) -> Iterator[list[float]]:
    """Lists what each gradient that is taken meanwhile adds to `counter`."""
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
    """Puts `watch()` around each gradient that is taken meanwhile, by vmap's programs too."""
    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **keywords: Any) -> Any:
            with watch():
                return function(*args, **keywords)
        return run

    # torch tells nobody that a backward pass starts, so wrap the two functions that start one;
    # Tensor.backward calls the first.
    kept = torch.autograd.backward, torch.autograd.grad
    torch.autograd.backward, torch.autograd.grad = (watched(function) for function in kept)
    try:
        yield
    finally:
        torch.autograd.backward, torch.autograd.grad = kept


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
