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
from tta_apm.toolbox.filters import largest_entropy
from tta_apm.toolbox.norm_layers import check_batch, train_only, without_last_stage

# The number of classes that the authors state the recovery threshold for.
IMAGENET = 1000


class Sar(Method):
    """Sharpness-aware and reliable entropy minimisation (Niu et al., ICLR 2023).

    Online, on the scales and shifts of the normalisation layers before the last stage, each batch
    normalised by its own statistics. Images of low entropy count; the gradient is taken where
    their mean entropy is highest within `radius` of the weights, of the images that still count
    there. Once the moving average of that second loss falls below the recovery threshold, all
    starts anew. The logits returned are from before the step.

    It departs from the authors' code thus: the last stage is found by its position in the network
    and not by names of timm; the moving average is emptied when all starts anew (theirs goes on, so
    that it may start anew after every batch); its threshold scales with ln K, since few classes
    have low entropies by themselves; without an image that counts there is no step (theirs lets
    the optimiser's momentum run on); dropout stays off.

    Args:
        backbone: a classifier with normalisation layers before its last stage.
        lr: learning rate; 2.5e-4 is a ResNet-50's for batches of 64, 1e-3 a vision transformer's;
            for batches of n < 32 the authors take lr·n/32, for single images twice that.
        optimizer: "sgd" (momentum .9) or "adam" (betas .9, .999).
        entropy_margin: the largest entropy that counts, as a share of ln K.
        radius: how far the weights climb before the gradient is taken.
        recovery: the threshold for 1,000 classes, in nats; for K it is that times ln K / ln 1000.
            0 never starts anew.
        momentum: what the moving average keeps of itself.

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
        """The source's scales and shifts, an empty optimiser and no mean loss."""
        self.adapted.restore()
        self.mean_loss: float | None = None

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "sar")
        with torch.enable_grad():
            logits = self.model(images)
            self._adapt(images, entropy(logits), logits.shape[1])
        return logits.detach()

    def _adapt(self, images: Tensor, entropies: Tensor, num_classes: int) -> None:
        margin = self.entropy_margin * largest_entropy(num_classes)
        counts = entropies < margin
        if not counts.any():
            return
        weights = [parameter.detach().clone() for parameter in self.adapted.parameters]
        self._climb(entropies[counts].mean())
        at_the_top = entropy(self.model(images))
        chosen = at_the_top[counts & (at_the_top.detach() < margin)]
        loss = chosen.mean() if len(chosen) else None
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
        self.did["updated"] += len(chosen)
        self._recover(loss.item(), num_classes)

    def _climb(self, loss: Tensor) -> None:
        """Move the weights by `radius` along the gradient of the loss."""
        gradients = torch.autograd.grad(loss, self.adapted.parameters)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(self.adapted.parameters, gradients):
                parameter.add_(gradient * (self.radius / (length + 1e-12)))

    def _recover(self, loss: float, num_classes: int) -> None:
        """Take the loss into the mean; start anew if that has fallen below the threshold."""
        self.mean_loss = (loss if self.mean_loss is None else
                          self.momentum * self.mean_loss + (1 - self.momentum) * loss)
        if self.mean_loss < self.recovery * math.log(num_classes) / math.log(IMAGENET):
            self.reset()
            self.did["resets"] += 1
