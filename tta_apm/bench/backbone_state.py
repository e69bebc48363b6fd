"""Backbone state: everything that a method could change in a shared network, to compare it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Any]


def backbone_state(network: nn.Module) -> State:
    """The state of `network` by the names of its parts; equal states mean no change.

    For weights and buffers it has checksums of their bytes, and dtype, shape, layout, device,
    gradient and hooks. For modules it has class, children, mode, hooks and plain attributes (e.g. a
    CLIP's logit scale, names, sizes). Other objects are compared by identity.
    """
    parts = dict(_parts(network))
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    for (name, tensor), sums in zip(tensors.items(), _checksums(list(tensors.values()))):
        parts[name] = _appearance(tensor), sums
    return parts


class QuickState:
    """As backbone_state in a quarter of the time, to check one network many times.

    Tensors are compared by object, memory, version, and their first and last value, instead of
    checksums. A write that does not change the version (through `.data`) is found only if it
    changes one of the two values. Everything else counts as unchanged if the containers hold the
    same objects.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = list(network.modules())
        self.types = list(map(type, self.modules))
        self.containers = [Contents(container) for module in self.modules
                           for container in _containers(vars(module))]
        self.parts = self._read_parts()
        self.tensors = [part for _, part in _parts(network) if isinstance(part, Tensor)]
        self.probes: dict[torch.dtype, list[Tensor]] = {}
        for tensor in (*network.parameters(), *network.buffers()):
            if _is_dense(tensor) and tensor.numel():
                self.probes.setdefault(tensor.dtype, []).extend(
                    tensor.detach()[(index,) * tensor.dim()] for index in (0, -1))
        self.values = self._read_tensors()

    def is_same(self) -> bool:
        """Whether the network is as it was at construction."""
        same_objects = (list(map(type, self.modules)) == self.types
                        and all(contents.are_there() for contents in self.containers))
        return ((same_objects or self._read_parts() == self.parts)
                and self._read_tensors() == self.values)

    def _read_parts(self) -> list[Any]:
        return [(name, Same(part) if isinstance(part, Tensor) else part)
                for name, part in _parts(self.network)]

    def _read_tensors(self) -> list[Any]:
        seen = [(tensor._version, tensor.data_ptr() if _is_dense(tensor) else 0,
                 tensor.requires_grad, len(tensor._backward_hooks or ()))
                for tensor in self.tensors]
        with torch.no_grad():
            values = [torch.stack(probes).view(torch.uint8).tolist()
                      for probes in self.probes.values()]
        return [seen, values]


class Contents:
    """The content of a container at the time of construction."""

    def __init__(self, container: Any) -> None:
        self.container = container
        self.keys = list(container) if isinstance(container, Mapping) else None
        self.values = self._read()

    def are_there(self) -> bool:
        """Whether the container still holds the same objects under the same keys."""
        if len(self.container) != len(self.values):
            return False
        return ((self.keys is None or list(self.container) == self.keys)
                and all(map(operator.is_, self._read(), self.values)))

    def _read(self) -> list[Any]:
        return list(self.container if self.keys is None else self.container.values())


def _containers(value: Any, depth: int = 0) -> Iterator[Any]:
    """A container and the containers in it, down to the depth of _parts."""
    if isinstance(value, (Mapping, list, tuple)) and depth <= DEPTH:
        yield value
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _containers(part, depth + 1)


def changed_parts(before: State, after: State) -> list[str]:
    """The names of the parts that differ."""
    missing = object()
    # In tuples, where a NaN equals itself.
    return [name for name in {**before, **after}
            if (before.get(name, missing),) != (after.get(name, missing),)]


class Same:
    """Compares an object by identity, and keeps it alive so that its address is not reused."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held


def _parts(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The names and values of a network's parts."""
    for path, module in network.named_modules():
        yield path or "the network", (Same(module), Same(type(module)), tuple(module._modules))
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    yield _join(path, key), tensor
            elif name != "_modules":
                yield from _flat(_join(path, name), value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _flat(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A value with its name; for a container, its values with names of their own."""
    if isinstance(value, (*PLAIN, Tensor)):
        yield name, value
    elif isinstance(value, Mapping) and depth < DEPTH:
        for key, part in value.items():
            yield from _flat(f"{name}.{key}", part, depth + 1)
    elif isinstance(value, (list, tuple)) and depth < DEPTH:
        if all(isinstance(part, PLAIN) for part in value):
            yield name, tuple(value)
        else:
            for index, part in enumerate(value):
                yield from _flat(f"{name}.{index}", part, depth + 1)
    else:
        yield name, Same(value)


PLAIN = (type(None), bool, int, float, str, bytes)
DEPTH = 4


def _appearance(tensor: Tensor) -> tuple[Any, ...]:
    """The properties of a tensor except its values."""
    return (type(tensor), tensor.dtype, tensor.shape, tensor.device, tensor.layout,
            tensor.stride() if _is_dense(tensor) else (), tensor.requires_grad,
            tensor.is_leaf and tensor.grad is not None, tuple(tensor._backward_hooks or ()))


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _checksums(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Three sums over the bytes of each tensor's storage.

    The bytes are summed as int64 words, weighted by their positions, so that a swap of two values
    changes the sum.
    """
    found: dict[int, tuple[int, ...]] = {}
    for device in {tensor.device for tensor in tensors if _is_dense(tensor)}:
        chosen = [index for index, tensor in enumerate(tensors)
                  if _is_dense(tensor) and tensor.device == device]
        # Most tensors are small: the rests beyond whole rows are summed together.
        rests = torch.zeros(len(chosen), ROW, dtype=torch.uint8, device=device)
        sums = torch.zeros(len(chosen), 3, dtype=torch.int64, device=device)
        for row, index in enumerate(chosen):
            content = torch.empty(0, dtype=torch.uint8, device=device)
            content.set_(tensors[index].untyped_storage())
            whole = len(content) // ROW * ROW
            if whole:
                words = content[:whole].view(torch.int64).view(-1, ROW // 8)
                sums[row, 0], sums[row, 1] = _weighted(words.sum(1)), _weighted(words.sum(0))
            rests[row, :len(content) - whole] = content[whole:]
        sums[:, 2] = _weighted(rests.view(torch.int64))
        found.update(zip(chosen, map(tuple, sums.tolist())))
    return [found.get(index, ()) for index in range(len(tensors))]


def _weighted(words: Tensor) -> Tensor:
    """The sum over the last axis of each word times its position, modulo 2**64."""
    return (words * torch.arange(1, words.shape[-1] + 1, device=words.device)).sum(-1)


ROW = 8192  # bytes
