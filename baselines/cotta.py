"""CoTTA: continual test-time adaptation by a mean teacher and stochastic restoring."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted, follow
from tta_apm.toolbox.augment import random_view
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.norm_layers import check_batch


class Cotta(Method):
    """Continual test-time domain adaptation (Wang et al., CVPR 2022).

    Online, on all weights, each batch normalised by its own statistics: the student learns the
    predictions of its mean teacher, whose logits are averaged over `num_views` augmented views if
    the source network is not sure of the batch. Then the teacher follows, and each single entry of
    the student's parameters returns to its source value with a small probability. The logits
    returned are the teacher's, from before the update. It keeps four copies of the weights, and
    where the source network is unsure a batch takes `num_views` + 2 forwards.

    It departs from the authors' code in two ways: every parameter is restored (theirs leaves those
    that are called neither weight nor bias, e.g. a transformer's class token); dropout stays off.

    Args:
        backbone: a classifier.
        lr: learning rate; 1e-3 (adam, batches of 200) is CIFAR's, 1e-2 (sgd, 64) ImageNet-C's.
        optimizer: "adam" (betas .9, .999) or "sgd" (momentum .9).
        momentum: what the teacher keeps of itself at an update.
        confidence: the mean top probability of the source network, below which there are views:
            .92 for CIFAR-10-C, .72 for CIFAR-100-C, .1 for ImageNet-C. The authors took it from
            the source network's certainty, so another network wants another.
        restore: the probability of an entry's return: .01 for CIFAR, .001 for ImageNet-C.
        num_views: of an image, for the average.
        symmetric: whether the cross-entropy goes both ways, as for ImageNet-C.
        seed: of views and restoring.

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
        """The source's weights for student and teacher, an empty optimiser, the generator."""
        self.adapted.restore()
        follow(self.teacher, self.student, 0)
        self.generator = torch.Generator().manual_seed(self.seed)

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "cotta")
        teacher_logits = self._teach(images)
        with torch.enable_grad():
            logits = self.student(images)
            loss = cross_entropy(logits, teacher_logits)
            if self.symmetric:
                loss = (loss + cross_entropy(teacher_logits, logits)) / 2
            self.adapted.step(loss.mean())
        follow(self.teacher, self.student, self.momentum)
        if self.restore:
            self.adapted.restore_some(self.restore, self.generator)
        return teacher_logits

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Tensor:
        """The teacher's logits [B,K]; averaged over views where the source network is unsure."""
        certainty = self.anchor(images).softmax(-1).amax(-1).mean()
        if certainty >= self.confidence:
            return self.teacher(images)
        views = [self.teacher(random_view(images, self.generator)) for _ in range(self.num_views)]
        return torch.stack(views).mean(0)


def cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Cross-entropy [B] of predictions with the softmax of the targets, both logits [B,K]."""
    return -(target_logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
