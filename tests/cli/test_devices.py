"""Methods on a device that is not the CPU, pretended: a tensor left behind is found without a GPU.

Tensors say that they are on `meta` and hold their numbers on the CPU, where every operation is done
after a look at where its inputs claim to be.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from small_methods import NAMES, SMALL
from tta_apm.registry import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    torch.__version__ < "2.6",
    reason="numbers held on the CPU do not reach numpy from a tensor subclass of older torch")]

AWAY = torch.device("meta")
MAY_CROSS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
# What needs the numbers of another package's device code; the rest of it runs in the contract test.
NOT_PRETENDED = dict.fromkeys(
    ["rmt", "cotta"], "draws from a generator of the device, which a pretended one has not")


class Away(torch.Tensor):
    """A tensor `held` on the CPU that says it is elsewhere."""

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=AWAY, requires_grad=requires_grad)

    def __init__(self, held, requires_grad=False):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function, args, kwargs):
    """Do on the CPU what was asked for, and say that the outcome is where the inputs are."""
    inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    away = [value for value in inputs if isinstance(value, Away)]
    left = [value for value in inputs if not isinstance(value, Away) and value.dim()]
    if away and left and function not in MAY_CROSS:
        raise RuntimeError(f"{function}: expected all tensors to be on the same device")
    goes_away = bool(away)
    if kwargs.get("device") is not None:
        goes_away = torch.device(kwargs["device"]) == AWAY
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda value: value.held if isinstance(value, Away) else value, (args, kwargs))
    if function is torch.ops.aten.copy_.default:  # between devices, too
        held[0][0].copy_(held[0][1])
        return args[0]
    known = {id(value.held): value for value in away}  # what works in place gives its input back
    return tree_map(lambda value: known[id(value)] if id(value) in known else
                    Away(value) if goes_away and isinstance(value, torch.Tensor) else value,
                    function(*held[0], **held[1]))


class Dispatch(TorchDispatchMode):
    """Sees what makes new tensors."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Sees what makes tensors of numbers, and what leaves torch."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor and isinstance(args[0], Away):
            return Away(torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}))
        if function is torch.tensor and kwargs.get("device") == AWAY:
            return Away(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if function is torch.Tensor.numpy and isinstance(args[0], Away):
            raise TypeError("can't convert a tensor of another device to numpy")
        return function(*args, **kwargs)


def send(module: torch.nn.Module) -> None:
    """What module.to(device) does."""
    for child in module.modules():
        for name, value in child._parameters.items():
            if value is not None and not isinstance(value, Away):
                child._parameters[name] = torch.nn.Parameter(Away(value.detach()),
                                                             value.requires_grad)
        for name, value in child._buffers.items():
            if value is not None and not isinstance(value, Away):
                child._buffers[name] = Away(value)


VARIANTS = [(name, {}) for name in NAMES] + [
    ("apm", dict(precision="bfloat16")),
    ("apm", dict(grid_weight=1.0, rgb_weight=1.0, columns=8)),
    ("apm", dict(augmentation="crop_flip", pooling="attention", kernels=2, local_patch=True)),
    ("tpt", dict(augmix=True, class_chunk=4))]


@pytest.mark.parametrize("name, keywords", VARIANTS, ids=lambda value: (
    "-".join(value) if isinstance(value, dict) else value))
def test_nothing_is_left_on_the_cpu(name, keywords, backbones, digits_source, digits_test,
                                    monkeypatch):
    if name in NOT_PRETENDED:
        pytest.skip(NOT_PRETENDED[name])
    # The fused kernel asks for a device that it knows.
    monkeypatch.setattr("torch.optim.Adam", lambda leaves, lr, fused=None, adam=torch.optim.Adam:
                        adam(leaves, lr))
    cls = METHODS.load(name)
    keywords = {**SMALL.get(name, {}), **keywords}
    if "source" in METHODS.signature(name).defaults:
        keywords["source"] = digits_source
    images = digits_test[0][:4]
    with Dispatch(), Functions():
        backbone = copy.deepcopy(backbones[cls.needs])
        send(backbone)
        method = cls(backbone, **keywords)
        send(method)
        with torch.no_grad():
            found = method(Away(images))
    expected = cls(backbones[cls.needs], **keywords)(images)
    assert isinstance(found, Away)
    assert torch.allclose(found.held, expected, atol=1e-3)
