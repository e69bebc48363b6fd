"""Head: a classifier split into its features and the linear layer that classifies them."""

from __future__ import annotations

import torch
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
        logits, features, layer = self._run(images)
        if layer is None or features.dim() != 2 or not torch.equal(
                self.classifier.kept(layer(features)), logits):
            raise UserError(f"{self.owner}: the logits of the classifier {self.classifier.name} "
                            "are not the output of a linear layer, so it has no separate features "
                            "and head")
        self._layer = layer
        return logits, features

    @property
    def weight(self) -> Tensor:
        """The rows [K,D] of the data set's classes; available after a call of `features`."""
        return self.classifier.kept(self._layer.weight.detach().T).T

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The layer's weight and bias; available after a call of `features`."""
        return list(self._layer.parameters())

    def logits(self, features: Tensor) -> Tensor:
        """Logits [n,K] of features [n,D]; available after a call of `features`."""
        return self.classifier.kept(F.linear(features, self._layer.weight, self._layer.bias))

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor, nn.Linear | None]:
        """Logits, the input of the last linear layer that ran, and that layer (None: none ran)."""
        seen: list[tuple[nn.Linear, Tensor]] = []

        def keep(layer: nn.Linear, inputs: tuple[Tensor]) -> None:
            seen[:] = [(layer, inputs[0])]
        inside = self.classifier
        hooks = [module.register_forward_pre_hook(keep) for module in inside.modules()
                 if isinstance(module, nn.Linear)]
        try:
            # Not `classifier(images)`: its result may be cached for another method, and then no
            # layer runs.
            logits = inside.kept(inside.net(inside.prepare(images)))
        finally:
            for hook in hooks:
                hook.remove()
        layer, features = seen[0] if seen else (None, logits)
        return logits, features, layer
