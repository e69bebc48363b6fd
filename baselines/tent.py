"""TENT: test-time adaptation by entropy minimisation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, choose
from tta_apm.method import Method
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.norm_layers import check_batch, norm_layers, train_only

OPTIMIZERS = ("adam", "sgd")


class Tent(Method):
    """Fully test-time adaptation by entropy minimisation (Wang et al., ICLR 2021).

    Online: each batch is normalised by its own statistics, and one step on the scales and shifts
    of the normalisation layers lowers the mean entropy of its predictions. The logits returned are
    those of the loss, from before the last update. Weights and optimiser survive from batch to
    batch until `reset()`.

    Departures from the authors' code, which change nothing for their networks: dropout stays off,
    and the scales and shifts of layer and group normalisation are adapted too.

    Args:
        backbone: a classifier with normalisation layers.
        lr: learning rate; the paper's is 1e-3 for CIFAR-10-C, 2.5e-4 (sgd, batches of 64) for
            ImageNet-C.
        steps: updates per batch.
        optimizer: "adam" (betas 0.9, 0.999) or "sgd" (Nesterov momentum 0.9).
        episodic: whether to reset before every batch.

    Raises:
        UserError: for a backbone without normalisation layers or values out of range.
        ValueError: for a batch of one image, which has no batch statistics.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights and optimiser"

    def __init__(self, backbone: Classifier, *, lr: float = 1e-3, steps: int = 1,
                 optimizer: str = "adam", episodic: bool = False) -> None:
        super().__init__()
        at_least(1, "tent", steps=steps)
        at_least(0, "tent", lr=lr)
        choose("tent", "optimizer", optimizer, OPTIMIZERS)
        self.model = copy.deepcopy(backbone)
        self.lr = lr
        self.steps = steps
        self.optimizer_name = optimizer
        self.episodic = episodic
        self.uses_batch_statistics = use_batch_statistics(self.model)
        self.adapted = train_only(self.model, norm_layers(self.model), "tent")
        self.source = [parameter.detach().clone() for parameter in self.adapted]
        self.reset()

    def reset(self) -> None:
        """Return to the source's scales and shifts, and an empty optimiser."""
        with torch.no_grad():
            for parameter, source in zip(self.adapted, self.source):
                parameter.copy_(source)
                parameter.grad = None
        if self.optimizer_name == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.adapted, lr=self.lr)
        else:
            self.optimizer = torch.optim.SGD(self.adapted, lr=self.lr, momentum=0.9, nesterov=True)

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "tent")
        if self.episodic:
            self.reset()
            self.did["resets"] += 1
        with torch.enable_grad():
            for _ in range(self.steps):
                logits = self.model(images)
                entropy(logits).mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return logits.detach()
