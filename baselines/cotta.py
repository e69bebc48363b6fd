"""CoTTA: continual test-time adaptation with a mean teacher and stochastic restoration."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted, ema_update
from tta_apm.toolbox.augment import random_view
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.norm_layers import check_batch


class Cotta(Method):
    """Continual test-time domain adaptation (Wang et al., CVPR 2022).

    Online, on all weights. Each batch is normalised by its own statistics. The student learns the
    predictions of its mean teacher, whose logits are averaged over `num_views` augmented views if
    the source network is not confident on the batch. Then the teacher is updated, and each entry
    of the student's parameters is restored to its source value with a small probability. The
    logits returned are the teacher's, from before the update. Four copies of the weights are kept
    in memory. If the source network is not confident, a batch takes `num_views` + 2 forwards.

    Departures from the authors' code: every parameter may be restored (theirs skips those not
    named weight or bias, e.g. a transformer's class token); dropout stays off.

    Args:
        backbone: a classifier.
        lr: learning rate; the paper's is 1e-3 (adam, batches of 200) for CIFAR, 1e-2 (sgd, 64) for
            ImageNet-C.
        optimizer: "adam" (betas 0.9, 0.999) or "sgd" (momentum 0.9).
        momentum: weight of the teacher's old parameters in its update.
        confidence: the source network's mean top probability below which views are used: 0.92
            for CIFAR-10-C, 0.72 for CIFAR-100-C, 0.1 for ImageNet-C. The authors chose it by the
            source network's confidence, so another network needs another value.
        restore: probability of restoring an entry: 0.01 for CIFAR, 0.001 for ImageNet-C.
        num_views: augmented views over which the teacher's logits are averaged.
        symmetric: whether to use the mean of both directions of the cross-entropy, as the authors
            do for ImageNet-C.
        seed: of the views and the restoration.

    Raises:
        UserError: for values out of range.
        ValueError: for a batch of one image where batch statistics are used.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, teacher and optimiser"

    def __init__(self, backbone: Classifier, *, lr: float = 1e-3, optimizer: str = "adam",
                 momentum: float = 0.999, confidence: float = 0.92, restore: float = 0.01,
                 num_views: int = 32, symmetric: bool = False, seed: int = 42) -> None:
        super().__init__()
        at_least(0, "cotta", lr=lr)
        at_least(1, "cotta", num_views=num_views)
        between(0, 1, "cotta", momentum=momentum, confidence=confidence, restore=restore)
        self.momentum = momentum
        self.confidence = confidence
        self.restore = restore
        self.num_views = num_views
        self.symmetric = symmetric
        self.seed = seed
        self.anchor = copy.deepcopy(backbone)
        self.uses_batch_statistics = use_batch_statistics(self.anchor)
        self.teacher = copy.deepcopy(self.anchor)
        self.student = copy.deepcopy(self.anchor).requires_grad_(True)
        self.adapted = Adapted(list(self.student.parameters()), lr=lr, optimizer=optimizer,
                               owner="cotta")
        self.reset()

    def reset(self) -> None:
        """Return student and teacher to the source's weights; renew optimiser and generator."""
        self.adapted.restore()
        ema_update(self.teacher, self.student, 0)
        self.generator = torch.Generator().manual_seed(self.seed)

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "cotta")
        teacher_logits = self._teacher_logits(images)
        with torch.enable_grad():
            logits = self.student(images)
            loss = cross_entropy(logits, teacher_logits)
            if self.symmetric:
                loss = (loss + cross_entropy(teacher_logits, logits)) / 2
            self.adapted.step(loss.mean())
        ema_update(self.teacher, self.student, self.momentum)
        if self.restore:
            self.adapted.stochastic_restore(self.restore, self.generator)
        return teacher_logits

    @torch.no_grad()
    def _teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits [B,K], averaged over views if the source network is unsure."""
        confidence = self.anchor(images).softmax(-1).amax(-1).mean()
        if confidence >= self.confidence:
            return self.teacher(images)
        views = [self.teacher(random_view(images, self.generator)) for _ in range(self.num_views)]
        return torch.stack(views).mean(0)


def cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Cross-entropy [B] between the softmaxes of target logits and of logits, both [B,K]."""
    return -(target_logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
