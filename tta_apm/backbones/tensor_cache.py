"""Tensors that take long to compute, cached in a file that processes share.

The first process computes them; others that need them meanwhile wait for the file. Tensors from the
file are bit-identical to computed ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tta_apm.atomic import atomic_path
from tta_apm.backbones.weights import files
from tta_apm.errors import UserError
from tta_apm.lock import locked

Tensors = dict[str, Tensor]

#: The folder for one method's tensors, which a sweep sets while it constructs the method.
folder_of_method: ContextVar[Path | None] = ContextVar("folder_of_method", default=None)


def load_or_compute(file: Path, compute: Callable[[], Tensors]) -> Tensors:
    """Tensors by name from `file`, or from `compute()`, whose result is then stored there.

    Tensors from the file are on the CPU. An unreadable file is replaced. If the folder is not
    writable, each process computes the tensors itself.
    """
    found = _read(file)
    if found is None:
        alone = file.with_suffix("")  # the folder of the lock
        with ExitStack() as stack:
            stack.callback(_remove_empty, alone)
            with suppress(UserError):  # the disk is full
                stack.enter_context(locked(alone, file.name))
            found = _read(file)  # another process may have written it meanwhile
            if found is None:
                found = compute()
                _write(file, found)
    return found


def precomputed(name: str, compute: Callable[[], Tensors]) -> Tensors:
    """Tensors that a method's constructor computes before all images, e.g. the state after warm-up.

    All processes of a sweep share them for the same row and seed. Outside of a sweep nothing is
    stored.

    Args:
        name: distinguishes several results of one method.
        compute: returns tensors by name, which must depend on the method's arguments only.
    """
    folder = folder_of_method.get()
    return compute() if folder is None else load_or_compute(folder / f"{name}.safetensors", compute)


def _read(file: Path) -> Tensors | None:
    if not file.is_file():
        return None
    try:
        # Cloned into memory that torch allocates, as for computed ones: the last bits of sums
        # depend on the alignment.
        return {name: tensor.clone() for name, tensor in files.read(file).items()}
    except UserError:
        return None


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty: another process holds its lock there
        folder.rmdir()


def _write(file: Path, tensors: Tensors) -> None:
    with suppress(OSError, SafetensorError), atomic_path(file, durable=False) as temporary:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
                  temporary)
