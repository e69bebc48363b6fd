"""once: tensors that take long to work out, kept in a file that processes share.

Whoever asks first works them out; who asks meanwhile waits for the file. What is read has the same
bits as what was worked out.
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

#: The folder for one method's tensors, which a sweep sets while it makes the method.
folder_of_method: ContextVar[Path | None] = ContextVar("folder_of_method", default=None)


def once(file: Path, compute: Callable[[], Tensors]) -> Tensors:
    """Tensors by name from `file`, or from `compute()`, which are then kept there.

    They come from the file on the CPU. A file that does not read is written again. Where nothing
    can be written, each process works them out for itself.
    """
    found = _read(file)
    if found is None:
        alone = file.with_suffix("")  # the folder of the lock
        with ExitStack() as stack:
            stack.callback(_remove_empty, alone)
            with suppress(UserError):  # the disk is full
                stack.enter_context(locked(alone, file.name))
            found = _read(file)  # of the process that was waited for
            if found is None:
                found = compute()
                _write(file, found)
    return found


def once_per_sweep(name: str, compute: Callable[[], Tensors]) -> Tensors:
    """What a method's constructor works out before all images, e.g. a warm-up: the same for a row
    and seed in all processes of a sweep. Outside of a sweep nothing is kept.

    Args:
        name: of it, among what the method works out.
        compute: gives tensors by name, which must depend on the method's arguments only.
    """
    folder = folder_of_method.get()
    return compute() if folder is None else once(folder / f"{name}.safetensors", compute)


def _read(file: Path) -> Tensors | None:
    if not file.is_file():
        return None
    try:
        # In memory of torch's own, as computed ones are: the last bits of sums go by its alignment.
        return {name: tensor.clone() for name, tensor in files.read(file).items()}
    except UserError:
        return None


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # the next one has its lock there
        folder.rmdir()


def _write(file: Path, tensors: Tensors) -> None:
    with suppress(OSError, SafetensorError), atomic_path(file, durable=False) as temporary:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
                  temporary)
