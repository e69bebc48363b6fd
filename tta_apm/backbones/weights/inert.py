"""inert: the contents of a pickle, read without running anything that it names.

A pickle is a program for a small machine, two of whose instructions call what the program names.
Here they call nothing: a name becomes a Named, and a call an Inert that keeps the arguments. Only
the few names in MAKERS, for plain data and tensors, are replaced by functions of ours.
Python's `pickletools` decodes the instructions and runs none. So no torch decides what is safe, and
no environment variable switches it off.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tta_apm.errors import explain

#: Instructions of a pickle: a trainer's file with its optimiser has some 100,000.
MAX_INSTRUCTIONS = 5_000_000
MAX_DIMS = 64

_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8"}
# Those of torch's newer types, whose storages are untyped; an old torch lacks some.
_NAMED_DTYPES = {*_DTYPES.values(), "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"}


class Malformed(Exception):
    """The bytes are not a valid pickle, or a harmful one; the text says what is wrong."""


class StorageReader(Protocol):
    """Reads the values of a file's tensors."""

    def read(self, key: str) -> bytearray:
        """The bytes of the storage `key`. Malformed if it is missing."""


class Named(NamedTuple):
    """A name of a class or function, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """An object that was not constructed: its class, arguments and state."""

    kind: Any
    args: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    rest: list[Any] = field(default_factory=list)

    @property
    def type_name(self) -> str:
        return str(self.kind) if isinstance(self.kind, Named) else "an object"


@dataclass(frozen=True, eq=False)
class Storage:
    """A contiguous run of numbers of one dtype, as torch stores tensors."""

    source: StorageReader
    key: str
    dtype: torch.dtype
    num: int


@dataclass(frozen=True)
class Lazy:
    """A tensor whose values are read on demand."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor itself. Malformed if its values are incomplete."""
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        content = self.storage.source.read(self.storage.key)
        if len(content) < self.storage.num * self.storage.dtype.itemsize:
            raise Malformed(f"its storage {self.storage.key!r} is incomplete")
        numbers = torch.frombuffer(content, dtype=self.dtype,
                                   count=len(content) // self.dtype.itemsize)
        return numbers.as_strided(self.shape, self.stride, self.offset)


@dataclass(eq=False)
class _Array:
    """A numpy dtype or array under construction."""

    text: str = ""
    args: Any = ()
    state: Any = None


def unpickle(stream: BinaryIO, load_storage: Callable[[Any], Any]) -> Any:
    """The contents of the next pickle of `stream`, which is left at the pickle's end.

    Args:
        load_storage: from a persistent id to its storage.

    Returns:
        None, booleans, numbers, texts, bytes, lists, tuples, dicts, Lazy tensors; Named and Inert
        for all else.

    Raises:
        Malformed: for bytes that are not a valid pickle.
    """
    try:
        return _Machine(load_storage).run(stream)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
            StopIteration) as error:
        raise Malformed(f"its pickle is corrupt or incomplete ({explain(error)})") from error


class _Mark:
    pass


_MARK = _Mark()
_KEYS = (str, int, float, bool, bytes, type(None))  # others could take for ever to hash


class _Machine:
    """The stack and memo of a pickle."""

    def __init__(self, load_storage: Callable[[Any], Any]) -> None:
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_INSTRUCTIONS:
                raise Malformed(f"a pickle of more than {MAX_INSTRUCTIONS:,} instructions")
            if opcode.name in _CONSTANTS:
                self.stack.append(argument)
            elif opcode.name == "STOP":
                break
            else:
                try:
                    step = _STEPS[opcode.name]
                except KeyError:
                    raise Malformed(f"a pickle with the instruction {opcode.name}") from None
                step(self, argument)
        result = self.stack.pop()
        if isinstance(result, _Array):
            return _finished(result)
        return result

    def since_mark(self) -> list[Any]:
        mark = len(self.stack) - 1
        while self.stack[mark] is not _MARK:
            mark -= 1
            if mark < 0:
                raise Malformed("a pickle without a mark")
        items = self.stack[mark + 1:]
        del self.stack[mark:]
        return items

    def last(self, num: int) -> list[Any]:
        if len(self.stack) < num:
            raise Malformed("a pickle whose stack runs empty")
        items = self.stack[len(self.stack) - num:]
        del self.stack[len(self.stack) - num:]
        return items

    # Containers

    def extend(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        (target.rest if isinstance(target, Inert) else _of(target, list)).extend(items)

    def set(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        content = target.items if isinstance(target, Inert) else _of(target, dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, _KEYS):
                content[key] = value

    # Calls, none of which is executed

    def call(self, kind: Any, args: Any) -> None:
        maker = MAKERS.get(str(kind)) if isinstance(kind, Named) else None
        made = maker(*args) if maker and isinstance(args, tuple) else NotImplemented
        self.stack.append(Inert(kind, args) if made is NotImplemented else made)

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, (Inert, _Array)):
            target.state = state

    def name(self, module: Any, name: Any) -> None:
        self.stack.append(Named(str(_of(module, str)), str(_of(name, str))))


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Malformed(f"a pickle that takes a {type(value).__name__} for a {kind.__name__}")
    return value


def _mapping(machine: _Machine, items: list[Any]) -> None:
    machine.stack.append({})
    machine.set(items)


def _instance(machine: _Machine, argument: str) -> None:
    args = machine.since_mark()
    module, _, name = argument.partition(" ")
    machine.call(Named(module, name), tuple(args))


def _object(machine: _Machine) -> None:
    kind, *args = machine.since_mark()
    machine.call(kind, tuple(args))


def _new(machine: _Machine, num: int) -> None:
    kind, args, *_ = machine.last(num)
    machine.call(kind, args)


_Step = Callable[[_Machine, Any], Any]
_CONSTANTS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING",
              "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
              "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT",
              "BINFLOAT"}
_STEPS: dict[str, _Step] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),  # no set holds weights
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "LIST": lambda machine, _: machine.stack.append(machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.last(3))),
    "DICT": lambda machine, _: _mapping(machine, machine.since_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set(machine.since_mark()),
    "GLOBAL": lambda machine, text: machine.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.last(2)),
    "REDUCE": lambda machine, _: _new(machine, 2),
    "NEWOBJ": lambda machine, _: _new(machine, 2),
    "NEWOBJ_EX": lambda machine, _: _new(machine, 3),
    "INST": _instance,
    "OBJ": lambda machine, _: _object(machine),
    "BUILD": lambda machine, _: machine.build(*machine.last(1)),
    "PERSID": lambda machine, text: machine.stack.append(machine.load_storage(text)),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.load_storage(*machine.last(1)))}
for _verb in ("", "BIN", "LONG_BIN"):
    _STEPS[f"{_verb}GET"] = lambda machine, index: machine.stack.append(machine.memo[index])
    _STEPS[f"{_verb}PUT"] = lambda machine, index: machine.memo.__setitem__(index,
                                                                            machine.stack[-1])
_STEPS["MEMOIZE"] = lambda machine, _: machine.memo.__setitem__(len(machine.memo),
                                                                machine.stack[-1])


# The exceptions: plain data and tensors, each constructed by a function of ours that checks its
# arguments. NotImplemented leaves an Inert.

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
    """Of an untyped storage: num counts bytes."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Named):
        return NotImplemented
    if dtype.name not in _NAMED_DTYPES or not hasattr(torch, dtype.name):
        return NotImplemented
    return _view(storage, getattr(torch, dtype.name), offset, shape, stride)


def _view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> Lazy:
    numbers = [offset, *_of(shape, tuple), *_of(stride, tuple)]
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
    """A tensor with attributes, or of a subclass: the tensor."""
    maker = _TENSORS.get(str(function)) if isinstance(function, Named) else None
    return maker(*args) if maker and isinstance(args, tuple) else NotImplemented


def _dict(*args: Any) -> Any:
    pairs = args[-1] if args and isinstance(args[-1], list) else []
    return {key: value for key, value in pairs if isinstance(key, _KEYS)}


def _list(items: Any = (), *_: Any) -> Any:
    return list(items) if isinstance(items, (list, tuple)) else NotImplemented


def _tuple(items: Any = (), *_: Any) -> Any:
    return tuple(items) if isinstance(items, (list, tuple)) else NotImplemented


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> Any:
    return text.encode("latin-1") if isinstance(text, str) and encoding in (
        "latin1", "latin-1", "iso-8859-1") else NotImplemented


def _first(value: Any, *_: Any) -> Any:
    return value


def _array(*args: Any) -> Any:
    return _Array()


def _dtype(text: Any, *_: Any) -> Any:
    return _Array(text) if isinstance(text, str) else NotImplemented


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter}
MAKERS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _tuple,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "_codecs.encode": _encode,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.dtype": _dtype}
for _module in ("builtins", "__builtin__"):
    MAKERS |= {f"{_module}.set": _list, f"{_module}.frozenset": _list, f"{_module}.list": _list,
               f"{_module}.tuple": _tuple, f"{_module}.dict": _dict}


def finished(value: Any) -> Any:
    """`value`, or the tensor of a numpy array that is one."""
    return _finished(value) if isinstance(value, _Array) else value


def _finished(array: _Array) -> Any:
    """The tensor of a numpy array of numbers; an Inert for any other."""
    other = Inert(Named("numpy", "ndarray"))
    if not isinstance(array.state, tuple) or len(array.state) != 5:
        return other
    _, shape, dtype, fortran, content = array.state
    if not isinstance(dtype, _Array) or not isinstance(dtype.state, tuple) or not isinstance(
            content, bytes) or not re.fullmatch("[fiub][1248]", dtype.text):
        return other
    try:
        numbers = np.frombuffer(content, np.dtype(f"{dtype.state[1]}{dtype.text}"))
        numbers = numbers.reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("=")))
    except (TypeError, ValueError, IndexError):
        return other
