"""Head: a classifier split into its features and the linear layer that classifies them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError


class Head:
    """The linear layer whose output is a classifier's logits.

    It is the last linear layer that runs, whatever its name, and is found at the first call of
    `features`.

    Args:
        classifier: a network of timm or torchvision, or your own.
        owner: name of the method, for error messages.
    """

    def __init__(self, classifier: Classifier, owner: str) -> None:
        self.classifier = classifier
        self.owner = owner

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B,K] and features [B,D] of images [B,3,H,W] in [0,1].

        The logits are features @ weight.T + bias.

        Raises:
            UserError: for a classifier whose last layer is not linear.
        """
        logits, features, index = self.classifier.head_input(images)
        if index < 0:
            raise UserError(f"{self.owner}: the logits of the classifier {self.classifier.name} "
                            "are not the output of a linear layer, so it has no separate features "
                            "and head")
        layer = list(self.classifier.net.modules())[index]
        assert isinstance(layer, nn.Linear)
        self._layer = layer
        return logits, features

    @property
    def weight(self) -> Tensor:
        """The rows [K,D] of the data set's classes; available after a call of `features`."""
        return self.classifier.select_classes(self._layer.weight.detach().T).T

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The layer's weight and bias; available after a call of `features`."""
        return list(self._layer.parameters())

    def logits(self, features: Tensor) -> Tensor:
        """Logits [n,K] of features [n,D]; available after a call of `features`."""
        logits = F.linear(features, self._layer.weight, self._layer.bias)
        return self.classifier.select_classes(logits)
