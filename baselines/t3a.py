"""T3A: test-time template adjuster, which adapts the last layer without gradients."""

from __future__ import annotations

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

    Online, without gradients. Each class has a set of supports, which starts with the class's
    weight vector in the last layer. An image's feature is added to the set of its predicted class,
    and each set keeps the `num_supports` of least entropy. An image's logits are the products of
    its feature with one unit vector per class, the direction of the mean of the class's supports
    after scaling them to length one.

    A batch is predicted *after* its features were added, as in the authors' code, so an image may
    be among the supports that classify it. The supports survive until `reset()`. In networks with
    batch normalisation, corruptions shift the features themselves, which T3A does not correct.

    Departure from the authors' code: a class's weight vector is always a support of that class,
    even if the last layer classifies it as another.

    Args:
        backbone: a classifier whose last layer is linear.
        num_supports: M, the supports per class; 0 keeps all, so memory grows with the stream. The
            paper selects from 1, 5, 20, 50, 100 and all.

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
        self.head = Head(backbone, "t3a")
        self.reset()

    def reset(self) -> None:
        """Return to the last layer's weight vectors as the only supports."""
        self.supports: Tensor | None = None  # unit vectors [S,D]
        self.classes = self.entropies = torch.empty(0)  # [S]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits, features = self.head.features(images)
        if self.supports is None:  # the head is found by the first call of `features`
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
