"""Norm: BN-adapt, prediction with the statistics of the test batch."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError, at_least, between
from tta_apm.method import Method
from tta_apm.toolbox.batch_norm import mixed_statistics
from tta_apm.toolbox.norm_layers import check_batch


class Norm(Method):
    """Batch normalisation adapted to covariate shift (Schneider et al., NeurIPS 2020).

    Each layer normalises by (1 - α)·source + α·batch statistics, with α = n / (N + n) for a batch
    of n images and N pseudo-samples of the source. Scale and shift are not changed. No state is
    carried from batch to batch, and there is no backward pass. The batch's variance is the biased
    one, so α = 1 equals training mode exactly.

    Args:
        backbone: a classifier with batch normalisation.
        pseudo_count: N; 0 uses the batch's statistics alone, 16 is the paper's choice for small
            batches.
        alpha: α itself, which replaces `pseudo_count`; None computes it.

    Raises:
        UserError: for a backbone without batch normalisation or values out of range.
        ValueError: for a batch of one image with α = 1.
    """

    needs = "classifier"
    scope = "batch"

    def __init__(self, backbone: Classifier, *, pseudo_count: float = 0.0,
                 alpha: float | None = None) -> None:
        super().__init__()
        at_least(0, "norm", pseudo_count=pseudo_count)
        if alpha is not None:
            between(0, 1, "norm", alpha=alpha)
        self.model = copy.deepcopy(backbone)
        self.pseudo_count = pseudo_count
        self.alpha = alpha
        self._batch_alpha = 1.0
        layers = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        if not layers:
            raise UserError(f"norm: the classifier {backbone.name} has no batch normalisation")
        for layer in layers:
            assert layer.running_mean is not None and layer.running_var is not None
            mix = partial(self._mix, layer.running_mean.clone(), layer.running_var.clone())
            layer.register_forward_pre_hook(mix)

    def _mix(self, source_mean: Tensor, source_variance: Tensor, layer: _BatchNorm,
             inputs: tuple[Tensor]) -> None:
        """Forward pre-hook: set a layer's statistics to those of source and inputs interpolated."""
        if self._batch_alpha == 1:  # without statistics, the layer computes its inputs' itself
            layer.running_mean = layer.running_var = None
            return
        layer.running_mean, layer.running_var = mixed_statistics(
            inputs[0], source_mean, source_variance, self._batch_alpha)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        alpha = count / (self.pseudo_count + count) if self.alpha is None else self.alpha
        check_batch(images, alpha == 1, "norm", "use a larger batch or NORM.PSEUDO_COUNT 16")
        self._batch_alpha = alpha
        return self.model(images)

    def reset(self) -> None:
        """Do nothing: the statistics are computed anew for every batch."""
