"""Pickles: read the contents of a pickle without running any code that it names. No torch.

A pickle is a program for a stack machine; some of its instructions call functions by name. Here
they call nothing: a name becomes a Named, and a call becomes an Inert that keeps the arguments.
Exceptions are the names in MAKERS, for plain data, and those that a caller adds: they call
functions of this package. Python's `pickletools` decodes the instructions and executes none.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from tta_apm.errors import explain
from tta_apm.pickle_objects import (
    KEYS, MAKERS, Inert, Maker, Malformed, Named, PickledArray, of_kind)

# A trainer's checkpoint with its optimiser has about 100,000 instructions.
MAX_INSTRUCTIONS = 5_000_000


def unpickle(stream: BinaryIO, load_storage: Callable[[Any], Any] | None = None,
             makers: Mapping[str, Maker] | None = None) -> Any:
    """Read the next pickle of `stream`, and leave the stream at the pickle's end.

    Args:
        load_storage: maps a persistent id to its object; None for files without persistent ids.
        makers: functions to call, by the full names in the pickle, beside those in MAKERS.

    Returns:
        None, booleans, numbers, texts, bytes, lists, tuples, dicts, PickledArrays and the results
        of `makers`; Named and Inert for everything else.

    Raises:
        Malformed: for bytes that are not a valid pickle.
    """
    try:
        return _Machine(load_storage or _no_storage, {**MAKERS, **(makers or {})}).run(stream)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
            StopIteration) as error:
        raise Malformed(f"its pickle is corrupt or incomplete ({explain(error)})") from error


def _no_storage(key: Any) -> Any:
    raise Malformed("a pickle that refers to something outside itself")


class _Mark:
    pass


_MARK = _Mark()


class _Machine:
    """The stack and memo of a pickle."""

    def __init__(self, load_storage: Callable[[Any], Any], makers: Mapping[str, Maker]) -> None:
        self.load_storage = load_storage
        self.makers = makers
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
        return self.stack.pop()

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
        (target.rest if isinstance(target, Inert) else of_kind(target, list)).extend(items)

    def set(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        content = target.items if isinstance(target, Inert) else of_kind(target, dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, KEYS):
                content[key] = value

    # Calls, none of which is executed

    def call(self, kind: Any, args: Any) -> None:
        maker = self.makers.get(str(kind)) if isinstance(kind, Named) else None
        result = maker(*args) if maker and isinstance(args, tuple) else NotImplemented
        self.stack.append(Inert(kind, args) if result is NotImplemented else result)

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, (Inert, PickledArray)):
            target.state = state

    def name(self, module: Any, name: Any) -> None:
        self.stack.append(Named(str(of_kind(module, str)), str(of_kind(name, str))))


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
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),  # a list does: sets hold no weights
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
