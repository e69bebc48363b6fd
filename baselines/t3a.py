"""T3A: a test-time template adjuster of the last layer."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least
from tta_apm.method import Method
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.head import Head


class T3a(Method):
    """Test-time classifier adjustment (Iwasawa and Matsuo, NeurIPS 2021).

    Online and without a gradient. Each class has a set of supports, which starts with the class's
    weight in the last layer. A feature joins the set of its predicted class; of each set the
    `num_supports` of least entropy stay. An image's logits are the products of its feature with
    the direction of each class's mean unit-length support.

    A batch is predicted *after* its features have joined, as in the authors' code, so that an image
    may be among the supports that classify it. The supports live on until `reset()`. On a network
    with batch normalisation corruptions move the features before the head sees them, which this
    does not undo.

    It departs from the authors' code in one way: the weight of a class is a support of that class
    even where the last layer itself would take it for another's.

    Args:
        backbone: a classifier whose last layer is linear.
        num_supports: M per class, 0 for all, which grows with the stream; the paper chooses among
            1, 5, 20, 50, 100 and all.

    Raises:
        UserError: for values out of range or a classifier whose last layer is not linear.
    """

    needs = "classifier"
    scope = "stream"
    survives = "supports"

    def __init__(self, backbone: Classifier, *, num_supports: int = 100) -> None:
        super().__init__()
        at_least(0, "t3a", num_supports=num_supports)
        self.num_supports = num_supports
        self.head = Head(copy.deepcopy(backbone), "t3a")
        self.reset()

    def reset(self) -> None:
        """The weights of the last layer as the only supports."""
        self.supports: Tensor | None = None  # [S,D], of unit length
        self.classes = self.entropies = torch.empty(0)  # [S]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits, features = self.head.features(images)
        if self.supports is None:  # the head is known once images have come
            weight = self.head.weight
            self.supports = F.normalize(weight, dim=-1)
            self.classes = torch.arange(len(weight), device=weight.device)
            self.entropies = entropy(self.head.logits(weight))
        self.supports = torch.cat([self.supports, F.normalize(features, dim=-1)])
        self.classes = torch.cat([self.classes, logits.argmax(-1)])
        self.entropies = torch.cat([self.entropies, entropy(logits)])
        if self.num_supports:
            self._prune(self.supports)
        members = logits.new_zeros(len(self.classes), logits.shape[1])  # [S,K]
        members.scatter_(1, self.classes[:, None], 1)
        return features @ F.normalize(members.T @ self.supports, dim=-1).T

    def _prune(self, supports: Tensor) -> None:
        """Keep the `num_supports` of least entropy of each class."""
        by_entropy = self.entropies.argsort(stable=True)
        order = by_entropy[self.classes[by_entropy].argsort(stable=True)]  # by class, then entropy
        classes = self.classes[order]
        # A support's rank in its class is its distance from the first one of the class.
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(classes, classes)
        kept = order[rank < self.num_supports].sort().values
        self.supports, self.classes, self.entropies = (
            supports[kept], self.classes[kept], self.entropies[kept])
