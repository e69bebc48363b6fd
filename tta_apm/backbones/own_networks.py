"""Users' own networks: functions in a file or module, or entry points, that return a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tta_apm.errors import UserError, explain
from tta_apm.plugins import import_plugin
from tta_apm.registry import NETWORKS, network_home


def is_own(model: str) -> bool:
    """Whether a value of CLASSIFIER.MODEL names a user's own network."""
    return network_home(model) is not None


def make_network(model: str) -> nn.Module:
    """Call the function that CLASSIFIER.MODEL names.

    Args:
        model: "my_net.py:build", "package.module:build" or a name of the entry-point group
            tta_apm.backbones.

    Raises:
        UserError: if there is no such function, if it raises, or if it does not return an
            nn.Module.
    """
    make = _function(model)
    try:
        net = make()
    except Exception as error:  # a user's function may raise anything
        raise UserError(f"CLASSIFIER.MODEL: {model} raises {explain(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"CLASSIFIER.MODEL: {model} returns {type(net).__name__}, not a torch "
                        "nn.Module that takes normalised images and returns logits")
    return net


def _function(model: str) -> Callable[[], object]:
    if model in NETWORKS.names():
        found = NETWORKS.load(model)
    else:
        module, _, name = model.rpartition(":")
        found = getattr(import_plugin(module, "CLASSIFIER.MODEL"), name, None)
    if not callable(found):
        raise UserError(f"CLASSIFIER.MODEL: {model} names no function: write FILE.py:FUNCTION or "
                        "MODULE:FUNCTION")
    function: Callable[[], object] = found
    return function
