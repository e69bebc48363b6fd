"""fit: the state dict in a file that fits a network, or the reason why none does."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tta_apm.backbones.weights.inert import Inert, Lazy
from tta_apm.backbones.weights.trees import Entry, Numbers

#: Converts entries from the names in a file to a network's names; names that already are the
#: network's are kept.
Rename = Callable[[Mapping[str, Entry]], Mapping[str, Entry]]

SHOWN = 3  # names of each kind in an error message
# Counters that old files lack and torch initialises.
_MAY_LACK = ("num_batches_tracked",)
# Entries of files that are not weights: tables that a network computes itself, counters of
# profilers and of averaged models, the sizes in OpenAI's archives.
_MAY_HAVE = ("num_batches_tracked", "attn_mask", "position_ids", "relative_position_index",
             "relative_coords_table", "total_ops", "total_params", "n_averaged",
             "input_resolution", "context_length", "vocab_size")
_AVERAGED = {"ema", "averaged", "swa", "shadow"}


class Fit(NamedTuple):
    """How a state dict fits a network.

    Attributes:
        label: its position in the file: the path of its container and the prefix of its names.
        found: the entries that the network has too, by the network's names.
        missing, reshaped, extra: names of the network that are missing, names with another shape,
            and names that the network does not have.
        all: the whole state dict, by the same names.
    """

    label: str
    found: dict[str, Numbers]
    missing: list[str]
    reshaped: list[str]
    extra: list[str]
    all: Mapping[str, Entry]

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.reshaped or self.extra)

    @property
    def is_averaged(self) -> bool:
        return bool(_AVERAGED & set(re.split(r"[/._]", self.label.lower())))


def fits(state_dicts: Mapping[str, Mapping[str, Entry]], wanted: Mapping[str, Tensor],
         rename: Rename | None = None) -> list[Fit]:
    """How each state dict of a file, under each of its prefixes, fits a network; best first.

    State dicts that hold none of the network's names are left out.

    Args:
        state_dicts: by the path of their container.
        wanted: the network's state_dict.
        rename: see Rename.
    """
    found = []
    for path, entries in state_dicts.items():
        for prefix in _prefixes(entries, wanted, rename):
            inside = {name.removeprefix(prefix): entry for name, entry in entries.items()
                      if name.startswith(prefix)}
            label = "/".join(filter(None, (path, prefix.removesuffix("."))))
            found.append(_fit(label, rename(inside) if rename else inside, wanted))
    return sorted(found, key=lambda fit: (len(fit.missing) + len(fit.reshaped), len(fit.extra)))


def _prefixes(entries: Mapping[str, Entry], wanted: Mapping[str, Tensor],
              rename: Rename | None) -> list[str]:
    """The prefixes, e.g. "module.", that the network's names have in a file."""
    counts: dict[str, int] = {}
    if rename is not None and wanted.keys() & rename(entries).keys():
        counts[""] = len(wanted.keys() & rename(entries).keys())
    tails = set(wanted)
    for name in entries:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in tails:
                prefix = "".join(f"{part}." for part in parts[:depth])
                counts[prefix] = counts.get(prefix, 0) + 1
    # A prefix with few of the names is an accident, e.g. "1." within a longer prefix.
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if 2 * count >= most]


def _fit(label: str, entries: Mapping[str, Entry], wanted: Mapping[str, Tensor]) -> Fit:
    found = {name: entry for name, entry in entries.items()
             if name in wanted and not isinstance(entry, Inert)}
    return Fit(
        label, found,
        missing=[name for name in wanted.keys() - found.keys()
                 if not name.endswith(_MAY_LACK)],
        reshaped=[name for name, entry in found.items() if not _is_like(entry, wanted[name])],
        extra=[name for name, entry in entries.items()
               if name not in wanted and not isinstance(entry, Inert)
               and not name.endswith(_MAY_HAVE)],
        all=entries)


def _is_like(entry: Numbers, wanted: Tensor) -> bool:
    """Whether an entry has a tensor's shape, and both or neither are floating point."""
    one = wanted.numel() == 1 and entry.shape.numel() == 1  # [] and [1] are equal, as in CLIPs
    return (entry.shape == wanted.shape or one) and (
        entry.dtype.is_floating_point == wanted.dtype.is_floating_point)


class Choice(NamedTuple):
    """The state dict to load, if any."""

    fit: Fit | None
    others: list[str]  # labels of those that fit as well


def choose_fit(found: Sequence[Fit], key: str) -> Choice:
    """The only state dict of `found` that fits completely, or the one that `key` names.

    Averaged weights are preferred to raw ones, as in timm. Among several others, none is chosen
    unless they are the same tensors.
    """
    whole: list[Fit] = []
    for fit in found:
        if fit.is_whole and (not key or f"/{key}/" in f"/{fit.label}/") and not any(
                _same(fit, other) for other in whole):
            whole.append(fit)
    averaged = [fit for fit in whole if fit.is_averaged]
    if len(whole) == 2 and len(averaged) == 1:
        return Choice(averaged[0], [fit.label for fit in whole if fit is not averaged[0]])
    if len(whole) == 1:
        return Choice(whole[0], [])
    return Choice(None, [fit.label for fit in whole])


def _same(one: Fit, other: Fit) -> bool:
    """Whether two state dicts consist of the same tensors in the file."""
    return all(_location(entry) is not None and _location(entry) == _location(other.found.get(name))
               for name, entry in one.found.items())


def _location(entry: Entry | None) -> tuple[object, ...] | None:
    return (entry.storage.key, entry.offset, entry.shape) if isinstance(entry, Lazy) else None


def read(fit: Fit, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict that fits, reshaped like those of `wanted`."""
    return {name: (entry.read() if isinstance(entry, Lazy) else entry).reshape(wanted[name].shape)
            for name, entry in fit.found.items()}


# Errors

def mismatch(fit: Fit, wanted: Mapping[str, Tensor]) -> str:
    """The missing, reshaped and extra tensors of a state dict, in words."""
    parts = []
    if fit.missing:
        parts.append(f"{len(fit.missing)} of its {len(wanted)} tensors are missing "
                     f"({_some(sorted(fit.missing))})")
    if fit.reshaped:
        shapes = [f"{name} is {_shape(fit.found[name])}, not {_shape(wanted[name])}"
                  for name in sorted(fit.reshaped)]
        parts.append(f"{len(fit.reshaped)} are of another shape ({_some(shapes)})")
    if fit.extra:
        parts.append(f"{len(fit.extra)} are not the network's ({_some(sorted(fit.extra))})")
    return ", ".join(parts)


def _shape(entry: Numbers) -> str:
    kind = "" if entry.dtype.is_floating_point else f" {str(entry.dtype).removeprefix('torch.')}"
    return f"{list(entry.shape)}{kind}"


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:SHOWN])
    return f"{shown}, ..." if len(names) > SHOWN else shown


def kinds(state_dicts: Mapping[str, Mapping[str, Entry]]) -> str:
    """The types of weights that are not stored as tensors, as a clause; "" if there are none."""
    names = {entry.type_name for entries in state_dicts.values() for name, entry in entries.items()
             if isinstance(entry, Inert) and name.endswith(("weight", "bias"))}
    return f"; its weights are stored as {_some(sorted(names))}" if names else ""


def shapes(entries: Mapping[str, Entry]) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a state dict."""
    return {name: entry.shape for name, entry in entries.items() if not isinstance(entry, Inert)}
