"""Network: a Classifier as the base model that online-tta's methods adapt."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.image_tower import is_tower
from tta_apm.errors import UserError


class Network(nn.Module):
    """A copy of a classifier whose weights require grad; it normalises images itself.

    The host sets `model_preprocess`, from which its methods read the size of the images. They use
    `split` to get the network in two parts. With a CLIP's image tower, they also use `logit_scale`,
    the logarithm of the inverse temperature, and the features before the head.
    """

    logit_scale: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(classifier).requires_grad_(True)
        self.model_preprocess: Any = None
        self.is_clip = is_tower(classifier)
        if self.is_clip:  # rows of the head are text features times the scale
            head: Any = classifier.net.head
            scale = head.weight.norm(dim=1).mean()
            self.register_buffer("logit_scale", scale.log().detach(), persistent=False)

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        """Logits [B,K] of images [B,3,H,W] in [0,1].

        With `return_features` also the image features [B,D] and the text features [K,D], which
        are unit vectors.
        """
        if not return_features:
            return self.classifier(images)
        if not self.is_clip:
            raise UserError("the host's method needs the features of a CLIP: name BACKBONE clip "
                            "in its row")
        net: Any = self.classifier.net
        features = net.tower(self.classifier.prepare(images))
        return net.head(features), features, F.normalize(net.head.weight, dim=-1)


class Encoder(nn.Module):
    """The part of a network before its last linear layer: images [B,3,H,W] -> features [B,D].

    Its layers are shared with the network, not copied.
    """

    def __init__(self, network: Network, last: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.last = last

    def forward(self, images: Tensor) -> Tensor:
        return _features(self.network, self.last, images)


class Kept(nn.Module):
    """Selects the logits [B,K] of the data set's classes from all logits."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, self.keep]


def split(network: Network, image_size: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and head, for which head(encoder(images)) equals network(images).

    Args:
        network: the network, on whose device the parts are.
        image_size: side of its images in pixels.

    Raises:
        UserError: if the logits are not the output of a linear layer.
    """
    classifier = network.classifier
    probe = torch.linspace(0, 1, 2 * 3 * image_size ** 2, device=classifier.mean.device)
    probe = probe.view(2, 3, image_size, image_size)
    with torch.no_grad(), _evaluating(network):
        logits = network(probe)
        for last in reversed([m for m in classifier.modules() if isinstance(m, nn.Linear)]):
            head = last if classifier.keep is None else nn.Sequential(last, Kept(classifier.keep))
            features = _features(network, last, probe)
            if features.dim() == 2 and torch.equal(head(features), logits):
                return Encoder(network, last), head
    raise UserError(f"the logits of the classifier {classifier.name} are not the output of a "
                    "linear layer, so it has no separate encoder and head")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """A context with all layers in eval mode, so that batch normalisation keeps its statistics."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _features(network: nn.Module, last: nn.Linear, images: Tensor) -> Tensor:
    """The input of the layer `last` in a forward; an empty tensor if it does not run."""
    seen = [torch.empty(0)]

    def keep(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        seen[0] = inputs[0]
    hook = last.register_forward_pre_hook(keep)
    try:
        network(images)
    finally:
        hook.remove()
    return seen[0]
