"""Backbone: a frozen network that takes images in [0,1] and normalises inside."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones import inputs
from tta_apm.backbones.passes import passes
from tta_apm.errors import choose

# Name of the weights of an untrained network.
UNTRAINED = "random"
# Mean and std of the images for an untrained network; their values do not matter.
HALF = (0.5, 0.5, 0.5)


class Backbone(nn.Module):
    """A frozen network in eval mode.

    Args:
        image_size: side in pixels of the images that the network takes; others are resized
            (bicubic, antialiased). None: any size.
        mean, std: per channel, as in the network's training.
        name: architecture, for the record.
        weights: name and hash of the weights, for the record.
        keep: indices of the network's outputs that are classes of the data set; None for all.
        notes: for the record, e.g. the source of mean and std, the activation.
    """

    kind: str
    mean: Tensor
    std: Tensor
    keep: Tensor | None

    def __init__(self, *, image_size: int | None, mean: Sequence[float], std: Sequence[float],
                 name: str, weights: str, keep: Sequence[int] | None = None,
                 notes: str = "") -> None:
        super().__init__()
        #: Preprocessing of images, in words, for the record.
        self.preprocessing = inputs.describe(image_size, mean, std, notes)
        self.image_size = image_size
        self.name = name
        self.weights = weights
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        # A buffer, since a list would be copied to the device in every forward.
        self.register_buffer("keep", None if keep is None else torch.tensor(keep),
                             persistent=False)

    def freeze(self) -> None:
        """Put the network into eval mode; none of its parameters requires grad afterwards."""
        self.eval()
        self.requires_grad_(False)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise images [B,3,H,W] in [0,1] to the network's inputs [B,3,S,S]."""
        if (counted := passes.get()) is not None:
            counted.forward(images)
        size = self.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
            images = images.clamp(0, 1)
        return (images - self.mean).div_(self.std)

    def select_classes(self, logits: Tensor) -> Tensor:
        """Select the logits [B,K] of the data set's classes from all of the network's logits."""
        return logits if self.keep is None else logits[:, self.keep]


def check_model(section: str, model: str, known: Collection[str]) -> None:
    """Raise UserError, which names the config's key, unless `model` is one of `known`."""
    choose(f"{section}.MODEL", "", model, known)
