"""DeYO: entropy minimisation on images whose prediction depends on the object's shape."""

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
from tta_apm.toolbox.filters import max_entropy
from tta_apm.toolbox.norm_layers import check_batch, train_only, without_last_stage


class Deyo(Method):
    """Destroy your object (Lee et al., ICLR 2024).

    Online, on the scales and shifts of the normalisation layers before the last stage. Each batch
    is normalised by its own statistics. Two filters select the images: the entropy is below
    `entropy_margin`·ln K, and the predicted class loses more than `plpd` of its probability when
    the image is cut into patches that are shuffled (the pseudo-label probability difference,
    PLPD). The loss is the selected images' mean entropy, weighted by
    exp(`weight_margin`·ln K - entropy) + exp(PLPD). If no image is selected, there is no step. The
    logits returned are from before the step.

    Departures from the authors' code: the last stage is found by its position in the network, not
    by timm's names; with batch statistics, a single image that passes the first filter is not
    selected, since its shuffled version would be a batch of one; `reset()` returns to the source
    (theirs has no saved state); dropout stays off.

    Args:
        backbone: a classifier with normalisation layers before its last stage.
        lr: learning rate; the authors' is 2.5e-4 for a ResNet-50 (batches of 64), 1e-3 for a
            vision transformer.
        optimizer: "sgd" (momentum 0.9) or "adam" (betas 0.9, 0.999).
        entropy_margin: upper bound of a selected image's entropy, as a fraction of ln K.
        weight_margin: the entropy with a weight of 1 + exp(PLPD), as a fraction of ln K.
        plpd: lower bound of a selected image's PLPD. The authors use 0.3 for ImageNet-C in the
            plain setting, 0.2 for mixed or imbalanced streams and single images, 0.5 for
            Waterbirds.
        patches: number per side; 4 gives patches of 56 pixels for ImageNet, 8 for CIFAR. An image
            whose side is not a multiple is resized to one, and back.
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
        """Return to the source's scales and shifts; renew optimiser and generator."""
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
        """Weighted mean entropy of the selected images; None if there are none."""
        largest = max_entropy(logits.shape[1])
        entropies = entropy(logits)
        certain = entropies.detach() < self.entropy_margin * largest
        if certain.sum() < (2 if self.uses_batch_statistics else 1):
            return None
        plpd = self._plpd(images[certain], logits.detach()[certain].softmax(-1))
        uses_shape = plpd > self.plpd
        if not uses_shape.any():
            return None
        selected, plpd = entropies[certain][uses_shape], plpd[uses_shape]
        self.did["updated"] += len(selected)
        weights = (self.weight_margin * largest - selected.detach()).exp() + plpd.exp()
        return (selected * weights).mean()

    @torch.no_grad()
    def _plpd(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """PLPD [n] of images, given their class probabilities [n,K]."""
        shuffled = self.model(shuffle_patches(images, self.patches, self.generator)).softmax(-1)
        classes = probabilities.argmax(-1, keepdim=True)
        return (probabilities - shuffled).gather(1, classes)[:, 0]


def shuffle_patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Cut each of the images [n,3,H,W] into count² patches and shuffle them; same shape.

    Every image has its own random order.
    """
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
