"""SAR: sharpness-aware and reliable entropy minimisation."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between, positive
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.filters import max_entropy
from tta_apm.toolbox.norm_layers import check_batch, train_only, without_last_stage

# The number of classes for which the authors state the recovery threshold.
IMAGENET_CLASSES = 1000


class Sar(Method):
    """Sharpness-aware and reliable entropy minimisation (Niu et al., ICLR 2023).

    Online, on the scales and shifts of the normalisation layers before the last stage. Each batch
    is normalised by its own statistics. Images of low entropy are selected. The weights are moved
    by `radius` along the gradient of their mean entropy (sharpness-aware minimisation), and the
    gradient for the update is taken there, over the images that still have low entropy. If the
    moving average of that second loss falls below the recovery threshold, the method resets
    itself. The logits returned are from before the step.

    Departures from the authors' code: the last stage is found by its position in the network, not
    by timm's names; the moving average is emptied too when the method resets itself (theirs is
    kept, so it may reset after every batch); the recovery threshold scales with ln K, since with
    few classes entropies are lower; if no image is selected, there is no step (in theirs the
    optimiser's momentum still moves the weights); dropout stays off.

    Args:
        backbone: a classifier with normalisation layers before its last stage.
        lr: learning rate; the authors' is 2.5e-4 for a ResNet-50 (batches of 64), 1e-3 for a
            vision transformer; for batches of n < 32 they use lr·n/32, for single images twice
            that.
        optimizer: "sgd" (momentum 0.9) or "adam" (betas 0.9, 0.999).
        entropy_margin: upper bound of a selected image's entropy, as a fraction of ln K.
        radius: distance by which the weights are moved before the second gradient is taken.
        recovery: recovery threshold in nats for 1,000 classes; for K classes it is multiplied by
            ln K / ln 1000. 0 turns recovery off.
        momentum: weight of the old moving average in its update.

    Raises:
        UserError: for a backbone without such layers or for values out of range.
        ValueError: for a batch of one image where batch statistics are used.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, optimiser and mean loss"

    def __init__(self, backbone: Classifier, *, lr: float = 2.5e-4, optimizer: str = "sgd",
                 entropy_margin: float = 0.4, radius: float = 0.05, recovery: float = 0.2,
                 momentum: float = 0.9) -> None:
        super().__init__()
        at_least(0, "sar", lr=lr, radius=radius, recovery=recovery)
        positive("sar", entropy_margin=entropy_margin)
        between(0, 1, "sar", momentum=momentum)
        self.entropy_margin = entropy_margin
        self.radius = radius
        self.recovery = recovery
        self.momentum = momentum
        self.model = copy.deepcopy(backbone)
        self.uses_batch_statistics = use_batch_statistics(self.model)
        parameters = train_only(self.model, without_last_stage(self.model), "sar",
                                " before its last stage")
        self.adapted = Adapted(parameters, lr=lr, optimizer=optimizer, owner="sar")
        self.reset()

    def reset(self) -> None:
        """Return to the source's scales and shifts; renew optimiser and mean loss."""
        self.adapted.restore()
        self.mean_loss: float | None = None

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "sar")
        with torch.enable_grad():
            logits = self.model(images)
            self._adapt(images, entropy(logits), logits.shape[1])
        return logits.detach()

    def _adapt(self, images: Tensor, entropies: Tensor, num_classes: int) -> None:
        """Make one sharpness-aware step; `entropies` [B] are those of the first forward."""
        margin = self.entropy_margin * max_entropy(num_classes)
        reliable = entropies < margin
        if not reliable.any():
            return
        weights = [parameter.detach().clone() for parameter in self.adapted.parameters]
        self._perturb(entropies[reliable].mean())
        perturbed = entropy(self.model(images))
        selected = perturbed[reliable & (perturbed.detach() < margin)]
        loss = selected.mean() if len(selected) else None
        gradients = (None if loss is None else
                     torch.autograd.grad(loss, self.adapted.parameters))
        with torch.no_grad():
            for parameter, weight in zip(self.adapted.parameters, weights):
                parameter.copy_(weight)
        if loss is None or gradients is None:
            return
        for parameter, gradient in zip(self.adapted.parameters, gradients):
            parameter.grad = gradient
        self.adapted.optimizer.step()
        self.adapted.optimizer.zero_grad()
        self.did["updated"] += len(selected)
        self._recover(loss.item(), num_classes)

    def _perturb(self, loss: Tensor) -> None:
        """Move the weights by `radius` along the gradient of the loss."""
        gradients = torch.autograd.grad(loss, self.adapted.parameters)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(self.adapted.parameters, gradients):
                parameter.add_(gradient * (self.radius / (length + 1e-12)))

    def _recover(self, loss: float, num_classes: int) -> None:
        """Update the moving average with `loss`; reset if it is below the threshold."""
        self.mean_loss = (loss if self.mean_loss is None else
                          self.momentum * self.mean_loss + (1 - self.momentum) * loss)
        if self.mean_loss < self.recovery * math.log(num_classes) / math.log(IMAGENET_CLASSES):
            self.reset()
            self.did["resets"] += 1
