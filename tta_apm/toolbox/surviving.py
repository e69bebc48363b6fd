"""Audit: episodic methods whose optimiser survives from image to image, to measure its effect.

An optimiser's moments carry information from earlier images into the next image's updates, so the
result for an image depends on the images before it and on their order. No method does that by
default. The variants that do have names of their own (e.g. apm_surviving); configs/audit compares
them with the episodic ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tta_apm.method import Method


class SurvivingOptimizer(Method):
    """Mixin, to be listed before an episodic method that has `make_optimizer(leaves)`.

    Every image still starts from the initial weights, but the optimiser's moments and step count
    survive from image to image until `reset()`. Images are adapted one after the other in the
    order of the stream, whatever the batch size.
    """

    scope = "stream"
    survives = "optimiser"

    _last: torch.optim.Optimizer | None = None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        logits, details = [], []
        for image in images.split(1):
            logits.append(super().forward(image))  # type: ignore[safe-super]
            details.append(self.details)
        self.details = {name: torch.cat([of_image[name] for of_image in details])
                        for name in details[0]}
        return torch.cat(logits)

    def reset(self) -> None:
        """Empty the optimiser."""
        super().reset()  # type: ignore[safe-super]
        self._last = None

    def make_optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """An optimiser of the next image's weights, with the state of the last image's one."""
        optimizer: torch.optim.Optimizer = super().make_optimizer(leaves)  # type: ignore[misc]
        if self._last is not None:
            for leaf, last in zip(leaves, self._last.param_groups[0]["params"]):
                optimizer.state[leaf] = self._last.state[last]
        self._last = optimizer
        return optimizer
