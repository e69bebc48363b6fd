"""DeYO: destroy your object; images count whose prediction rests on the object's shape."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between, positive
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.filters import largest_entropy
from tta_apm.toolbox.norm_layers import check_batch, train_only, without_last_stage


class Deyo(Method):
    """Destroy your object (Lee et al., ICLR 2024).

    Online, on the scales and shifts of the normalisation layers before the last stage, each batch
    normalised by its own statistics. Two filters choose the images that count: their entropy is
    below `entropy_margin`·ln K, and their predicted class loses more than `plpd` of its probability
    when the image is cut into patches that are shuffled (the pseudo-label probability difference,
    PLPD). The loss is their mean entropy, each weighed by exp(`weight_margin`·ln K - entropy) +
    exp(PLPD). Without such an image there is no step. The logits returned are from before the step.

    It departs from the authors' code thus: the last stage is found by its position in the network
    and not by names of timm; where batch statistics are used, a single image that passes the first
    filter does not count, since shuffled it would be a batch of one; `reset()` returns to the
    source (theirs has no saved state); dropout stays off.

    Args:
        backbone: a classifier with normalisation layers before its last stage.
        lr: learning rate; 2.5e-4 is a ResNet-50's for batches of 64, 1e-3 a vision transformer's.
        optimizer: "sgd" (momentum .9) or "adam" (betas .9, .999).
        entropy_margin: the largest entropy that counts, as a share of ln K.
        weight_margin: the entropy, as a share of ln K, whose weight is 1.
        plpd: the PLPD that an image has to exceed; .3 is the authors' for ImageNet-C in the plain
            setting, .2 for mixed or imbalanced streams and single images, .5 for Waterbirds.
        patches: per side. 4 make patches of 56 pixels of an ImageNet image, of 8 of CIFAR's. An
            image whose side is not a multiple is resized to one, and back.
        seed: of the shuffling.

    Raises:
        UserError: for a backbone without such layers or for values out of range.
        ValueError: for a batch of one image where batch statistics are used, and for images
            smaller than the number of patches.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights and optimiser"

    def __init__(self, backbone: Classifier, *, lr: float = 2.5e-4, optimizer: str = "sgd",
                 entropy_margin: float = 0.5, weight_margin: float = 0.4, plpd: float = 0.3,
                 patches: int = 4, seed: int = 42) -> None:
        super().__init__()
        at_least(0, "deyo", lr=lr, weight_margin=weight_margin)
        at_least(2, "deyo", patches=patches)
        positive("deyo", entropy_margin=entropy_margin)
        between(0, 1, "deyo", plpd=plpd)
        self.entropy_margin = entropy_margin
        self.weight_margin = weight_margin
        self.plpd = plpd
        self.patches = patches
        self.seed = seed
        self.model = copy.deepcopy(backbone)
        self.uses_batch_statistics = use_batch_statistics(self.model)
        parameters = train_only(self.model, without_last_stage(self.model), "deyo",
                                " before its last stage")
        self.adapted = Adapted(parameters, lr=lr, optimizer=optimizer, owner="deyo")
        self.reset()

    def reset(self) -> None:
        """The source's scales and shifts, an empty optimiser and the generator's start."""
        self.adapted.restore()
        self.generator = torch.Generator().manual_seed(self.seed)

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "deyo")
        if min(images.shape[-2:]) < self.patches:
            raise ValueError(f"deyo: images of {tuple(images.shape[-2:])} pixels cannot be cut "
                             f"into {self.patches} patches per side")
        with torch.enable_grad():
            logits = self.model(images)
            loss = self._loss(images, logits)
            if loss is not None:
                self.adapted.step(loss)
        return logits.detach()

    def _loss(self, images: Tensor, logits: Tensor) -> Tensor | None:
        """Weighed mean entropy of the images that count; None if none does."""
        largest = largest_entropy(logits.shape[1])
        entropies = entropy(logits)
        counts = entropies.detach() < self.entropy_margin * largest
        if counts.sum() < (2 if self.uses_batch_statistics else 1):
            return None
        plpd = self._plpd(images[counts], logits.detach()[counts].softmax(-1))
        has_shape = plpd > self.plpd
        if not has_shape.any():
            return None
        chosen, plpd = entropies[counts][has_shape], plpd[has_shape]
        self.did["updated"] += len(chosen)
        weights = (self.weight_margin * largest - chosen.detach()).exp() + plpd.exp()
        return (chosen * weights).mean()

    @torch.no_grad()
    def _plpd(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """How much less probable [n] the predicted classes are once the patches are shuffled."""
        shuffled = self.model(shuffle_patches(images, self.patches, self.generator)).softmax(-1)
        classes = probabilities.argmax(-1, keepdim=True)
        return (probabilities - shuffled).gather(1, classes)[:, 0]


def shuffle_patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Images [n,3,H,W] cut into count·count patches each, in an order of each image's own."""
    size = list(images.shape[-2:])
    cut = [side // count * count for side in size]
    if cut != size:
        images = F.interpolate(images, size=cut, mode="bilinear", antialias=True)
    n, channels, height, width = images.shape
    patches = images.reshape(n, channels, count, height // count, count, width // count)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(n, count * count, generator=generator).argsort(-1).to(images.device)
    patches = patches[torch.arange(n, device=images.device)[:, None], order]
    patches = patches.unflatten(1, (count, count)).permute(0, 3, 1, 4, 2, 5)
    images = patches.reshape(n, channels, height, width)
    if cut != size:
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
    return images
