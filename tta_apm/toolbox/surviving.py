"""Audit: episodic methods whose optimiser survives from image to image, to measure what it does.

An optimiser's moments carry the images before into the updates of the next, so that the result for
an image depends on those before it and on their order. No method does that by default; the ones
that do have names of their own (apm_surviving, ...) and stand beside the fresh ones in
configs/audit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tta_apm.method import Method


class SurvivingOptimizer(Method):
    """To be mixed in before an episodic method that has `make_optimizer(leaves)`.

    Weights are fresh for every image, as ever; the optimiser's moments and step count live on from
    image to image until `reset()`. Images are adapted one after the other, in the order in which
    they come, whatever the batch size.
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
        """An optimiser of the next image's weights, in the state that the last one's left."""
        made: torch.optim.Optimizer = super().make_optimizer(leaves)  # type: ignore[misc]
        if self._last is not None:
            for leaf, last in zip(leaves, self._last.param_groups[0]["params"]):
                made.state[leaf] = self._last.state[last]
        self._last = made
        return made
