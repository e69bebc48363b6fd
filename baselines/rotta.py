"""RoTTA: robust test-time adaptation in dynamic scenarios."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted, ema_update
from tta_apm.toolbox.augment import random_view
from tta_apm.toolbox.batch_norm import after_normalisation, replace_batch_norm
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.norm_layers import norm_layers, train_only


class Rotta(Method):
    """Robust test-time adaptation (Yuan, Xie and Li, CVPR 2023).

    Online, on the scales and shifts of the normalisation layers, for streams in which neighbouring
    images share a class. A mean teacher predicts, with batch normalisation statistics that change
    slowly from the source's. A memory holds images balanced over their predicted classes, and
    replaces old and uncertain ones. After every `update_every` images the student is trained to
    predict, on an augmented view of the memory, what the teacher predicts on the memory; both
    update their statistics with those of the memory; then the teacher's weights are updated. The
    logits returned are the teacher's from before the batch. Batches may have any size, also 1,
    since updates count images. Without batch normalisation, memory and teacher work as usual.

    Args:
        backbone: a classifier with normalisation layers.
        lr: learning rate.
        optimizer: "adam" (betas 0.9, 0.999) or "sgd" (momentum 0.9).
        statistics: weight of the memory's statistics in an update of the statistics (α).
        momentum: weight of the teacher's old parameters in its update (1 - ν).
        memory: capacity of the memory in images.
        update_every: number of images from one update to the next.
        lambda_age, lambda_uncertainty: weights of age and uncertainty in the score by which images
            leave the memory.
        seed: of the views.

    Raises:
        UserError: for a backbone without normalisation layers or for values out of range.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, teacher, statistics, optimiser and memory"

    def __init__(self, backbone: Classifier, *, lr: float = 1e-3, optimizer: str = "adam",
                 statistics: float = 0.05, momentum: float = 0.999, memory: int = 64,
                 update_every: int = 64, lambda_age: float = 1.0,
                 lambda_uncertainty: float = 1.0, seed: int = 42) -> None:
        super().__init__()
        at_least(0, "rotta", lr=lr, lambda_age=lambda_age, lambda_uncertainty=lambda_uncertainty)
        at_least(1, "rotta", memory=memory, update_every=update_every)
        between(0, 1, "rotta", statistics=statistics, momentum=momentum)
        self.momentum = momentum
        self.memory_size = memory
        self.update_every = update_every
        self.lambdas = lambda_age, lambda_uncertainty
        self.seed = seed
        self.student = copy.deepcopy(backbone)
        parameters = train_only(self.student, norm_layers(self.student), "rotta")
        replace_batch_norm(self.student, partial(RobustBatchNorm, share=statistics))
        self.adapted = Adapted(parameters, lr=lr, optimizer=optimizer, owner="rotta")
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self._start = copy.deepcopy(dict(self.teacher.named_buffers()))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the source's weights and statistics; renew optimiser, memory and generator."""
        self.adapted.restore()
        ema_update(self.teacher, self.student, 0)
        for model in (self.student, self.teacher):
            for name, buffer in model.named_buffers():
                buffer.copy_(self._start[name])
        self.memory = Memory(self.memory_size, *self.lambdas)
        self.num_images = 0
        self.generator = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits = self.teacher(images)
        labels = logits.argmax(-1).cpu().tolist()
        entropies = (entropy(logits) / math.log(logits.shape[1])).cpu().tolist()
        for image, label, uncertainty in zip(images, labels, entropies):
            self.memory.add(image, label, uncertainty, num_classes=logits.shape[1])
            self.num_images += 1
            if self.num_images % self.update_every == 0:
                self._update()
        return logits

    def _update(self) -> None:
        """Make one step of the student on the memory, then update the teacher."""
        images, ages = self.memory.content()
        with torch.enable_grad(), updating_statistics(self.student, self.teacher):
            targets = self.teacher(images).softmax(-1)
            logits = self.student(random_view(images, self.generator))
            # The weight of an image: 1/2 for a new one, less for older ones.
            timeliness = torch.sigmoid(-ages.to(logits))
            losses = -(targets * logits.log_softmax(-1)).sum(-1)
            self.adapted.step((losses * timeliness).mean())
        self.did["updated"] += len(images)
        ema_update(self.teacher, self.student, self.momentum)


class RobustBatchNorm(nn.Module):
    """Batch normalisation with slowly updated statistics (the paper's Eq. 3 and 4).

    While `updates_statistics` is set, it normalises by the updated ones, and gradients flow
    through them.

    Args:
        layer: gives the source's statistics, scale and shift, and the activation if it has one.
        share: weight of the inputs' statistics in an update.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, layer: _BatchNorm, share: float) -> None:
        super().__init__()
        assert layer.running_mean is not None and layer.running_var is not None
        self.register_buffer("mean", layer.running_mean.clone())
        self.register_buffer("variance", layer.running_var.clone())
        self.weight, self.bias = layer.weight, layer.bias
        self.eps = layer.eps
        self.after = after_normalisation(layer)
        self.share = share
        self.updates_statistics = False

    def forward(self, inputs: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.updates_statistics:
            axes = [axis for axis in range(inputs.dim()) if axis != 1]
            own_variance, own_mean = torch.var_mean(inputs, axes, correction=0)
            mean, variance = mean.lerp(own_mean, self.share), variance.lerp(own_variance,
                                                                            self.share)
            self.mean, self.variance = mean.detach(), variance.detach()
        shape = [1, -1, *[1] * (inputs.dim() - 2)]
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        outputs: Tensor = self.after(inputs * scale.view(shape) + shift.view(shape))
        return outputs


class updating_statistics:
    """A context in which the RobustBatchNorm layers of models update their statistics."""

    def __init__(self, *models: nn.Module) -> None:
        self.layers = [module for model in models for module in model.modules()
                       if isinstance(module, RobustBatchNorm)]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.updates_statistics = True

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            layer.updates_statistics = False


@dataclass
class Item:
    """An image in the memory."""

    image: Tensor  # [3,H,W]
    label: int  # predicted class
    uncertainty: float  # entropy as a fraction of ln K
    age: int = 0  # images since it was added


class Memory:
    """Category-balanced sampling with timeliness and uncertainty (the paper's Section 3.3).

    Args:
        capacity: maximum number of images.
        lambda_age, lambda_uncertainty: weights of the score; the image with the highest one
            leaves first.
    """

    def __init__(self, capacity: int, lambda_age: float, lambda_uncertainty: float) -> None:
        self.capacity = capacity
        self.lambda_age = lambda_age
        self.lambda_uncertainty = lambda_uncertainty
        self.items: list[Item] = []

    def add(self, image: Tensor, label: int, uncertainty: float, *, num_classes: int) -> None:
        """Add an image if there is room, or in place of one with a higher score.

        Args:
            image: [3,H,W].
            label: its predicted class.
            uncertainty: its entropy as a fraction of ln K.
            num_classes: K; each class has room for `capacity` / K images.
        """
        new = Item(image.clone(), label, uncertainty)
        counts = Counter(item.label for item in self.items)
        if counts[label] >= self.capacity / num_classes:
            rivals = {label}
        elif len(self.items) >= self.capacity:
            most = max(counts.values())
            rivals = {other for other, count in counts.items() if count == most}
        else:
            rivals = set()
        if not rivals or self._remove_worst(rivals, self._score(new)):
            self.items.append(new)
        for item in self.items:
            item.age += 1

    def content(self) -> tuple[Tensor, Tensor]:
        """Images [n,3,H,W] sorted by class, and their ages [n] as multiples of the capacity."""
        items = sorted(self.items, key=lambda item: item.label)
        ages = torch.tensor([item.age / self.capacity for item in items])
        return torch.stack([item.image for item in items]), ages

    def _remove_worst(self, labels: set[int], limit: float) -> bool:
        """Remove the image of these classes with the highest score, if that is above `limit`.

        Returns:
            Whether an image was removed.
        """
        rivals = [item for item in self.items if item.label in labels]
        # Ties: the last class, and in it the newest image.
        worst = max(rivals, key=lambda item: (self._score(item), item.label, -item.age))
        if self._score(worst) <= limit:
            return False
        self.items = [item for item in self.items if item is not worst]
        return True

    def _score(self, item: Item) -> float:
        return (self.lambda_age / (1 + math.exp(-item.age / self.capacity))
                + self.lambda_uncertainty * item.uncertainty)
