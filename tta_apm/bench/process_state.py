"""ProcessState: the settings of the process that all rows of a sweep share, read and restored.

If a method changed one of them, the numbers, the time or the output of other methods would change.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer


class Setting(NamedTuple):
    """One setting of the process.

    Args:
        name: for errors.
        read: returns its value; equal values mean that nothing has changed.
        write: restores a value.
        difference: the difference of two values, for errors; None if a change is not an error.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    difference: Callable[[Any, Any], str] | None = (
        lambda before, after: f"{after!r}, was {before!r}")


class ProcessState:
    """The settings of the process at the time of construction."""

    def __init__(self) -> None:
        self.values = [_value(setting) for setting in SETTINGS]

    def restore(self) -> list[str]:
        """Restore all settings that have changed since; returns the changes that are errors."""
        found = changes = self._changes()
        for _ in range(ROUNDS):
            for setting, before, _ in changes:
                if before is not None:
                    setting.write(before)
            if changes:
                changes = self._changes()
        return [f"{setting.name} ({setting.difference(before, after)})"
                for setting, before, after in found if setting.difference is not None]

    def _changes(self) -> list[tuple[Setting, Any, Any]]:
        """The settings that have changed, each with its value before and now."""
        now = [(setting, before, _value(setting))
               for setting, before in zip(SETTINGS, self.values)]
        return [change for change in now if change[1] != change[2]]


# Setting one of torch's precisions changes others, so restoring all takes more than one round.
ROUNDS = 3


def _value(setting: Setting) -> Any:
    """The value of a setting; None if it cannot be read, e.g. a precision of torch after two ways
    of setting it were mixed."""
    try:
        return setting.read()
    except (RuntimeError, OSError):
        return None


# Settings of torch that are plain attributes; a version of torch may lack some.
ATTRIBUTES = ("backends.cudnn.enabled", "backends.cudnn.benchmark", "backends.cudnn.deterministic",
              "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
              "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
              "backends.mkldnn.enabled", "backends.opt_einsum.enabled",
              "utils.deterministic.fill_uninitialized_memory")
# Only the newer or only the older names are used: torch refuses to read some after both were used.
NEW_PRECISIONS = ("backends.fp32_precision", "backends.cuda.matmul.fp32_precision",
                  "backends.cudnn.fp32_precision", "backends.cudnn.conv.fp32_precision",
                  "backends.cudnn.rnn.fp32_precision", "backends.mkldnn.fp32_precision",
                  "backends.mkldnn.conv.fp32_precision", "backends.mkldnn.matmul.fp32_precision",
                  "backends.mkldnn.rnn.fp32_precision")
OLD_PRECISIONS = ("backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32")
ATTENTION = ("flash", "mem_efficient", "math", "cudnn")


def _of_torch() -> Iterator[Setting]:
    yield Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield Setting("torch's default device", lambda: torch.empty(0).device.type, _set_default_device)
    yield Setting("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled)
    yield Setting("torch's anomaly detection", torch.is_anomaly_enabled,
                  torch.autograd.set_detect_anomaly)
    yield Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads)
    yield Setting("torch's deterministic algorithms",
                  lambda: (torch.are_deterministic_algorithms_enabled(),
                           torch.is_deterministic_algorithms_warn_only_enabled()),
                  lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]))
    yield Setting("torch's handling of denormal numbers", _flushes_denormals,
                  torch.set_flush_denormal)
    yield Setting("torch's float32 matmul precision", torch.get_float32_matmul_precision,
                  torch.set_float32_matmul_precision)
    precisions = NEW_PRECISIONS if _has("backends.fp32_precision") else OLD_PRECISIONS
    for path in filter(_has, (*ATTRIBUTES, *precisions)):
        holder, _, name = path.rpartition(".")
        yield Setting(f"torch.{path}", partial(attrgetter(path), torch),
                      partial(setattr, attrgetter(holder)(torch), name))
    if _has("backends.mha"):
        yield Setting("the fast path of torch's attention", torch.backends.mha.get_fastpath_enabled,
                      torch.backends.mha.set_fastpath_enabled)
    for kernel in ATTENTION:
        if hasattr(torch.backends.cuda, f"enable_{kernel}_sdp"):
            yield Setting(f"torch's {kernel} kernels of attention",
                          getattr(torch.backends.cuda, f"{kernel}_sdp_enabled"),
                          getattr(torch.backends.cuda, f"enable_{kernel}_sdp"))
    if hasattr(torch, "get_autocast_dtype"):  # since torch 2.4 these functions take a device
        for device in ("cpu", "cuda"):
            yield Setting(f"torch's autocast on {device}",
                          partial(torch.is_autocast_enabled, device),
                          partial(torch.set_autocast_enabled, device))
    yield Setting("torch's hooks on all modules and optimisers", _global_hooks, _set_global_hooks,
                  lambda before, after: ", ".join(
                      name for name in after if after[name] != before[name]))


def _has(path: str) -> bool:
    """Whether this torch has an attribute at `path`."""
    try:
        attrgetter(path)(torch)
    except AttributeError:
        return False
    return True


def _set_default_device(kind: str) -> None:
    torch.set_default_device(None if kind == "cpu" else kind)


def _flushes_denormals() -> bool:
    """Whether torch flushes denormal numbers to 0, which no function of torch returns."""
    return not (torch.tensor(1e-42, device="cpu", dtype=torch.float32) * 1).item()


def _global_hooks() -> dict[str, dict[int, Any]]:
    return {name: dict(hooks) for name, hooks in _HOOKS.items()}


def _set_global_hooks(value: dict[str, dict[int, Any]]) -> None:
    for name, hooks in value.items():
        _HOOKS[name].clear()
        _HOOKS[name].update(hooks)


_HOOKS: dict[str, dict[int, Any]] = {
    name: hooks for module in (torch_module, torch_optimizer)
    for name, hooks in vars(module).items()
    if name.startswith("_global_") and name.endswith("hooks")}


def _of_the_process() -> Iterator[Setting]:
    yield Setting("numpy's handling of errors", np.geterr, lambda value: np.seterr(**value))
    yield Setting("the working folder", os.getcwd, os.chdir)
    yield Setting("the environment", lambda: dict(os.environ), _set_environment, _other_keys)
    for name in ("stdin", "stdout", "stderr"):
        yield Setting(f"sys.{name}", partial(_stream, name), partial(_set_stream, name),
                      lambda before, after: "closed" if after[1] else "another one")
    yield Setting("a handler of signals", lambda: {number: signal.getsignal(number)
                                                   for number in _SIGNALS},
                  _set_handlers, _other_keys)
    # An import may add filters: they are removed, but it is not an error.
    yield Setting("the filters of warnings", lambda: list(warnings.filters), _set_filters, None)


_SIGNALS = tuple(sorted(signal.valid_signals()))


def _other_keys(before: dict[Any, Any], after: dict[Any, Any]) -> str:
    """The keys whose values differ."""
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return ", ".join(getattr(key, "name", str(key)) for key in keys)


def _set_environment(value: dict[str, str]) -> None:
    for key in os.environ.keys() - value.keys():
        del os.environ[key]
    os.environ.update(value)


def _stream(name: str) -> tuple[Any, bool]:
    stream = getattr(sys, name)
    return stream, getattr(stream, "closed", True)


def _set_stream(name: str, value: tuple[Any, bool]) -> None:
    stream, closed = value
    if closed or not stream.closed:
        setattr(sys, name, stream)
    elif getattr(sys, name) is stream:  # a closed stream cannot be reopened
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w",
                                encoding="utf-8"))


def _set_handlers(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _set_filters(value: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(value)  # type: ignore[attr-defined]


def torch_settings() -> list[Any]:
    """The values of all settings of torch; equal lists mean that it computes the same numbers."""
    return [_value(setting) for setting in OF_TORCH]


OF_TORCH = tuple(_of_torch())
SETTINGS = (*OF_TORCH, *_of_the_process())
