"""Batch normalisation with other statistics than the source's running averages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def use_batch_statistics(model: nn.Module) -> bool:
    """Make batch normalisation use the batch's statistics in eval mode too.

    Returns:
        Whether the model has layers of batch normalisation.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = None
    return bool(layers)


def replace_batch_norm(model: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> None:
    """Replace each layer of batch normalisation that has running statistics by `make(layer)`."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and child.running_mean is not None:
                setattr(module, name, make(child))


def after_normalisation(layer: _BatchNorm) -> nn.Module:
    """What a layer applies to the values it has normalised, scaled and shifted.

    A BatchNormAct2d of timm holds dropout and the activation; torch's own layers hold nothing.
    """
    return nn.Sequential(*(getattr(layer, name) for name in ("drop", "act")
                           if hasattr(layer, name)))


def mixed_statistics(inputs: Tensor, mean: Tensor, variance: Tensor, share: float
                     ) -> tuple[Tensor, Tensor]:
    """Given mean and variance [C] interpolated with those of the inputs [N,C,...].

    The variance of the inputs is the biased one. No gradient flows through the statistics.

    Args:
        share: weight of the inputs' statistics, in [0,1].
    """
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    own_variance, own_mean = torch.var_mean(inputs.detach(), axes, correction=0)
    return mean.lerp(own_mean, share), variance.lerp(own_variance, share)
