"""inert: the tensors in a pickle of torch, read without calling the functions that it names.

tta_apm.pickles interprets a pickle; this module has the functions that replace torch's in it. So
the reading is safe whatever the version of torch and the environment variables for torch.load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from tta_apm import pickles
from tta_apm.pickle_objects import Inert, Maker, Malformed, Named, PickledArray, of_kind, tuple_of

MAX_DIMS = 64

_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8"}
# Dtypes in files of newer versions, whose storages are untyped; an old torch lacks some of them.
_NAMED_DTYPES = {*_DTYPES.values(), "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"}


class StorageReader(Protocol):
    """Reads the values of a file's tensors."""

    def read(self, key: str) -> bytearray:
        """The bytes of the storage `key`; raises Malformed if it is missing."""


@dataclass(frozen=True, eq=False)
class Storage:
    """A contiguous run of numbers of one dtype, as torch stores tensors."""

    source: StorageReader
    key: str
    dtype: torch.dtype
    num: int  # of numbers


@dataclass(frozen=True)
class Lazy:
    """A tensor whose values are read on demand."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor with its values; raises Malformed if they are incomplete."""
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        content = self.storage.source.read(self.storage.key)
        if len(content) < self.storage.num * self.storage.dtype.itemsize:
            raise Malformed(f"its storage {self.storage.key!r} is incomplete")
        numbers = torch.frombuffer(content, dtype=self.dtype,
                                   count=len(content) // self.dtype.itemsize)
        return numbers.as_strided(self.shape, self.stride, self.offset)


def unpickle(stream: BinaryIO, load_storage: Callable[[Any], Any]) -> Any:
    """The contents of the next pickle in `stream`, whose position is then behind the pickle.

    Args:
        load_storage: persistent id -> storage.

    Returns:
        See pickles.unpickle; tensors are Lazy.

    Raises:
        Malformed: for bytes that are not a valid pickle.
    """
    return finished(pickles.unpickle(stream, load_storage, _MAKERS))


# Replacements of the functions that pickles of tensors name. Each checks its arguments; a result
# NotImplemented leaves an Inert in the contents.

def storage_of(source: StorageReader, kind: Any, key: Any, num: Any) -> Any:
    """The storage that a persistent id of torch describes."""
    name = kind.name if isinstance(kind, Named) and kind.module.startswith("torch") else ""
    if name not in _DTYPES or not isinstance(num, int) or num < 0:
        raise Malformed(f"a storage of the unknown type {kind}")
    return Storage(source, str(key), getattr(torch, _DTYPES[name]), num)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, Storage):
        return NotImplemented
    return _view(storage, storage.dtype, offset, shape, stride)


def _typed_tensor(storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any,
                  hooks: Any, dtype: Any, *_: Any) -> Any:
    """A tensor with an untyped storage, whose `num` counts bytes."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Named):
        return NotImplemented
    if dtype.name not in _NAMED_DTYPES or not hasattr(torch, dtype.name):
        return NotImplemented
    return _view(storage, getattr(torch, dtype.name), offset, shape, stride)


def _view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> Lazy:
    numbers = [offset, *of_kind(shape, tuple), *of_kind(stride, tuple)]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) or (
            len(shape) != len(stride) or len(shape) > MAX_DIMS):
        raise Malformed("a tensor of an impossible shape")
    held = storage.num * storage.dtype.itemsize // dtype.itemsize
    # A view may repeat numbers (`expand`), which takes no memory.
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
    if prod(shape) and last >= held:
        raise Malformed("a tensor that reaches outside its storage")
    return Lazy(storage, dtype, offset, torch.Size(shape), stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data if isinstance(data, Lazy) else NotImplemented


def _subclass(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """The plain tensor of one with attributes or of a subclass."""
    maker = _TENSORS.get(str(function)) if isinstance(function, Named) else None
    return maker(*args) if maker and isinstance(args, tuple) else NotImplemented


def _first(value: Any, *_: Any) -> Any:
    return value


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter}
_MAKERS: dict[str, Maker] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": tuple_of,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first}


def finished(value: Any) -> Any:
    """A numpy array of numbers as a tensor, any other array as an Inert; else `value` itself."""
    if not isinstance(value, PickledArray):
        return value
    numbers = value.numbers()
    try:
        return Inert(Named("numpy", "ndarray")) if numbers is None else torch.from_numpy(numbers)
    except TypeError:  # a dtype that torch does not have
        return Inert(Named("numpy", "ndarray"))
