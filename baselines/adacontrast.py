"""AdaContrast: pseudo-labels of neighbours and contrast with a momentum queue, online."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as T
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between, positive
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted, ema_update
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.head import Head
from tta_apm.toolbox.norm_layers import check_batch

# Number of images before pseudo-labels come from neighbours; until then the network gives them.
FIRST = 1024
BLUR_RADIUS = 6  # pixels: three times the largest deviation


class Adacontrast(Method):
    """Contrastive test-time adaptation (Chen et al., CVPR 2022), in its online form.

    Online, on all weights, one step per batch. The pseudo-label of an image is the class of its
    nearest neighbours among earlier images, by features of a momentum copy of the network; for the
    first 1,024 images it is the network's own prediction. The loss is the cross-entropy of a
    strongly augmented view with the pseudo-label, plus a contrastive loss of this view and the
    momentum copy's feature of another view, against a queue of such features of other
    pseudo-labels, minus the entropy of the mean prediction. The logits returned are from after
    the step, with running statistics, which the step's two passes have updated.

    The paper's own form is offline: 15 epochs over all test images, with random crops in the strong
    views. The online form is that of Marsden et al. (WACV 2024). Ours differs from their code in
    three ways: new features replace the oldest ones in the bank of neighbours, while theirs begin
    with the newest; all parameters are adapted, in theirs those named weight or bias; dropout stays
    off.

    Args:
        backbone: a classifier whose last layer is linear.
        lr: learning rate of SGD (Nesterov momentum 0.9, weight decay 1e-4).
        momentum: weight of the momentum copy's old parameters in its update.
        temperature: of the contrastive loss (τ).
        queue: capacity of the queue, and of the bank of neighbours, in images.
        neighbours: number of neighbours that give a pseudo-label.
        seed: of the views, and of the random features and labels that the queue begins with.

    Raises:
        UserError: for a backbone whose last layer is not linear or for values out of range.
        ValueError: for a batch of one image if the backbone has batch normalisation.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, statistics, momentum copy, optimiser, queue and bank"

    def __init__(self, backbone: Classifier, *, lr: float = 2e-4, momentum: float = 0.999,
                 temperature: float = 0.07, queue: int = 16384, neighbours: int = 10,
                 seed: int = 42) -> None:
        super().__init__()
        at_least(0, "adacontrast", lr=lr)
        at_least(1, "adacontrast", queue=queue, neighbours=neighbours)
        positive("adacontrast", temperature=temperature)
        between(0, 1, "adacontrast", momentum=momentum)
        self.momentum = momentum
        self.temperature = temperature
        self.queue_size = queue
        self.neighbours = neighbours
        self.seed = seed
        self.model = copy.deepcopy(backbone).requires_grad_(True)
        self.slow = copy.deepcopy(backbone)
        self.uses_batch_statistics = use_batch_statistics(self.slow)
        self.head = Head(self.model, "adacontrast")
        self.slow_head = Head(self.slow, "adacontrast")
        self.adapted = Adapted(list(self.model.parameters()), lr=lr, optimizer="sgd",
                               owner="adacontrast", weight_decay=1e-4, nesterov=True)
        self._start = copy.deepcopy(dict(self.model.named_buffers()))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the source's weights and statistics in both networks; renew optimiser, queue,
        bank and generator."""
        self.adapted.restore()
        ema_update(self.slow, self.model, 0)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._start[name])
        self.generator = torch.Generator().manual_seed(self.seed)
        self.queue: Ring | None = None  # made when the size of a feature is known
        self.bank = Ring(self.queue_size)
        self.num_images = 0

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "adacontrast")
        weak = weak_view(images, self.generator)
        queries, keys = (strong_view(images, self.generator) for _ in range(2))
        self._set_training(True)
        with torch.no_grad():
            labels = self._pseudo_labels(weak)
        with torch.enable_grad():
            self.adapted.step(self._loss(queries, keys, labels))
        self._set_training(False)
        with torch.no_grad():
            logits, features = self.slow_head.features(weak)
            self.bank.put(F.normalize(features, dim=-1), logits.softmax(-1))
            self.num_images += len(images)
            return self.model(images)

    def _set_training(self, training: bool) -> None:
        """Switch batch normalisation between the batch's statistics and the running ones."""
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.train(training)

    def _pseudo_labels(self, weak: Tensor) -> Tensor:
        """Pseudo-labels [B] of weak views [B,3,H,W]."""
        logits, features = self.head.features(weak)
        if self.num_images < FIRST:
            return logits.argmax(-1)
        known, probabilities = self.bank.columns
        similarity = F.normalize(features, dim=-1) @ known.T
        nearest = similarity.topk(min(self.neighbours, len(known))).indices
        return probabilities[nearest].mean(1).argmax(-1)

    def _loss(self, queries: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        """The loss of two strong views [B,3,H,W] and pseudo-labels [B]; updates the momentum copy
        and the queue."""
        logits, features = self.head.features(queries)
        with torch.no_grad():
            ema_update(self.slow, self.model, self.momentum)
            key = F.normalize(self.slow_head.features(keys)[1], dim=-1)
        query = F.normalize(features, dim=-1)
        if self.queue is None:
            self.queue = self._random_queue(key, logits.shape[1])
        similar = torch.cat([(query * key).sum(-1, keepdim=True),
                             query @ self.queue.columns[0].T], 1) / self.temperature
        # As in the authors' code, the mask uses the labels after the update of the queue, the
        # logits its features before.
        self.queue.put(key, labels)
        same = labels[:, None] == self.queue.columns[1]
        similar = similar.masked_fill(F.pad(same, (1, 0)), -torch.inf)
        contrast = F.cross_entropy(similar, torch.zeros_like(labels))
        mean = logits.softmax(-1).mean(0)
        return F.cross_entropy(logits, labels) + contrast + (mean * (mean + 1e-8).log()).sum()

    def _random_queue(self, like: Tensor, num_classes: int) -> Ring:
        features = torch.randn(self.queue_size, like.shape[1], generator=self.generator)
        labels = torch.randint(num_classes, (self.queue_size,), generator=self.generator)
        queue = Ring(self.queue_size)
        queue.put(F.normalize(features.to(like), dim=-1), labels.to(like.device))
        return queue


class Ring:
    """A ring buffer of rows, one tensor per column; once full, new rows replace the oldest.

    Args:
        capacity: number of rows at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.columns: list[Tensor] = []  # [N,...] each
        self.oldest = 0  # slot of the oldest row, once it is full

    def put(self, *columns: Tensor) -> None:
        """Add n rows, a tensor [n,...] per column; beyond the capacity, the first are dropped."""
        new = [column[-self.capacity:] for column in columns]
        if not self.columns:
            self.columns = [column.clone() for column in new]
            return
        room = self.capacity - len(self.columns[0])
        slots = (self.oldest + torch.arange(len(new[0][room:]))) % self.capacity
        self.columns = [torch.cat([old, column[:room]]) for old, column in zip(self.columns, new)]
        for column, values in zip(self.columns, new):
            column[slots.to(column.device)] = values[room:]
        self.oldest = (self.oldest + len(slots)) % self.capacity


def weak_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each of the images [B,3,H,W] horizontally with probability 0.5."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)


def strong_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment each of the images [B,3,H,W] in [0,1] independently: colour jitter (with
    probability 0.8), grey (0.2), Gaussian blur (0.5), horizontal flip (0.5)."""
    views = torch.stack([_recoloured(image, generator) for image in images])
    deviations = 0.1 + 1.9 * torch.rand(len(images), generator=generator)
    is_blurred = torch.rand(len(images), generator=generator) < 0.5
    if is_blurred.any():
        chosen = is_blurred.to(images.device)
        views[chosen] = blurred(views[chosen], deviations[is_blurred].to(views))
    return weak_view(views, generator)


def blurred(images: Tensor, deviations: Tensor) -> Tensor:
    """Images [B,3,H,W], each blurred by a Gaussian of its own deviation [B] in pixels."""
    radius = min(BLUR_RADIUS, *(side - 1 for side in images.shape[-2:]))
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = (-0.5 * (offsets / deviations[:, None]) ** 2).softmax(-1).repeat_interleave(3, 0)
    views = F.pad(images, [radius] * 4, mode="reflect").flatten(0, 1)[None]
    for shape in ((-1, 1, 2 * radius + 1, 1), (-1, 1, 1, 2 * radius + 1)):
        views = F.conv2d(views, kernels.view(shape), groups=len(kernels))
    return views.view_as(images)


def _recoloured(image: Tensor, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: T.adjust_brightness(x, uniform(0.6, 1.4)),
        lambda x: T.adjust_contrast(x, uniform(0.6, 1.4)),
        lambda x: T.adjust_saturation(x, uniform(0.6, 1.4)),
        lambda x: T.adjust_hue(x, uniform(-0.1, 0.1))]
    if uniform(0, 1) < 0.8:
        for index in torch.randperm(len(changes), generator=generator).tolist():
            image = changes[index](image)
    if uniform(0, 1) < 0.2:
        image = T.rgb_to_grayscale(image, 3)
    return image
