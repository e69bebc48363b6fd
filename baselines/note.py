"""NOTE: instance-aware batch normalisation and a memory balanced by predictions."""

from __future__ import annotations

import copy
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted
from tta_apm.toolbox.batch_norm import after_normalisation, replace_batch_norm
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.norm_layers import norm_layers, train_only


class Note(Method):
    """Non-i.i.d. test-time adaptation (Gong et al., NeurIPS 2022).

    Online, on the scales and shifts of the normalisation layers, for streams in which neighbouring
    images share a class. Each image is predicted alone, so that results do not depend on the batch
    size. Batch normalisation is instance-aware (`iabn`): it corrects the source's statistics where
    those of the image differ from them by more than chance. A memory holds images balanced over
    their predicted classes. After every `update_every` images the mean entropy of the memory is
    minimised, and the statistics are updated with those of the memory. The logits returned are from
    before the update. Without batch normalisation, memory and entropy work as usual.

    The authors train their source networks with instance-aware layers. A network trained without
    them changes its predictions when it gets them, before any adaptation: compare the row with
    `note STEPS 0`.

    It differs from the authors' code in four ways: the loss is the entropy itself, while theirs is
    divided by the number of classes and adds 1e-6 inside the logarithm; a step uses the whole
    memory as one batch, which is the same up to 64 images; the images after the last full
    `update_every` are predicted, while theirs drops them; dropout stays off.

    Args:
        backbone: a classifier with normalisation layers.
        lr: learning rate.
        optimizer: "adam" (betas 0.9, 0.999) or "sgd" (momentum 0.9).
        iabn: whether batch normalisation is made instance-aware.
        k: number of standard errors by which a statistic may differ by chance.
        momentum: weight of the memory's statistics in an update of the statistics.
        memory: capacity of the memory in images.
        update_every: number of images from one update to the next.
        steps: gradient steps per update.
        seed: of the choice of images that leave the memory.

    Raises:
        UserError: for a backbone without normalisation layers or for values out of range.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, statistics, optimiser and memory"

    def __init__(self, backbone: Classifier, *, lr: float = 1e-4, optimizer: str = "adam",
                 iabn: bool = True, k: float = 4.0, momentum: float = 0.01, memory: int = 64,
                 update_every: int = 64, steps: int = 1, seed: int = 42) -> None:
        super().__init__()
        at_least(0, "note", lr=lr, k=k, steps=steps)
        at_least(1, "note", memory=memory, update_every=update_every)
        between(0, 1, "note", momentum=momentum)
        self.memory_size = memory
        self.update_every = update_every
        self.steps = steps
        self.seed = seed
        self.model = copy.deepcopy(backbone)
        parameters = train_only(self.model, norm_layers(self.model), "note")
        self.batch_norms = [layer for layer in self.model.modules()
                            if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
        for layer in self.batch_norms:
            layer.momentum = momentum
        if iabn:
            replace_batch_norm(self.model, partial(InstanceAwareBatchNorm, k=k))
        self.adapted = Adapted(parameters, lr=lr, optimizer=optimizer, owner="note")
        self._start = copy.deepcopy(dict(self.model.named_buffers()))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the source's weights and statistics; renew optimiser, memory and generator."""
        self.adapted.restore()
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._start[name])
        self.memory = Memory(self.memory_size, self.seed)
        self.num_images = 0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits = []
        while len(images):
            until_update = self.update_every - self.num_images % self.update_every
            part, images = images[:until_update], images[until_update:]
            logits.append(self.model(part))
            for image, label in zip(part, logits[-1].argmax(-1).cpu().tolist()):
                self.memory.add(image, label)
            self.num_images += len(part)
            if self.num_images % self.update_every == 0:
                self._update()
        return torch.cat(logits)

    def _update(self) -> None:
        """Minimise the entropy of the memory, and update the statistics."""
        images = self.memory.content()
        self.did["updated"] += len(images) if self.steps else 0
        for _ in range(self.steps):
            # A memory of one image has no batch statistics.
            with torch.enable_grad(), training(self.batch_norms if len(images) > 1 else []):
                self.adapted.step(entropy(self.model(images)).mean())


class InstanceAwareBatchNorm(nn.Module):
    """Instance-aware batch normalisation (the paper's Section 3.1).

    The reference statistics are the layer's running ones in eval mode, and those of the batch, with
    gradients, in training mode, which also updates the running ones. The mean and the variance of
    an image over its positions correct the reference by as much as they exceed k standard errors.

    Args:
        layer: batch normalisation with running statistics, which it replaces.
        k: number of standard errors.
    """

    def __init__(self, layer: _BatchNorm, k: float) -> None:
        super().__init__()
        self.layer = layer
        self.k = k
        self.after = after_normalisation(layer)

    def forward(self, inputs: Tensor) -> Tensor:
        layer, positions = self.layer, list(range(2, inputs.dim()))
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None and variance is not None and layer.momentum is not None
        if layer.training:
            running = mean, variance
            variance, mean = torch.var_mean(inputs, [0, *positions])
            running[0].lerp_(mean.detach(), layer.momentum)
            running[1].lerp_(variance.detach(), layer.momentum)
        shape = [1, -1, *[1] * len(positions)]
        mean, variance = mean.view(shape), variance.view(shape)
        size = inputs[0, 0].numel()
        if size > 1:
            own_variance, own_mean = torch.var_mean(inputs, positions, keepdim=True)
            noise = variance + layer.eps
            chance = self.k * (noise / size).sqrt(), self.k * noise * (2 / (size - 1)) ** 0.5
            mean = mean + beyond(own_mean - mean, chance[0])
            variance = (variance + beyond(own_variance - variance, chance[1])).relu()
        outputs = (inputs - mean) * (variance + layer.eps).rsqrt()
        if layer.affine:
            outputs = outputs * layer.weight.view(shape) + layer.bias.view(shape)
        return self.after(outputs)


def beyond(differences: Tensor, limits: Tensor) -> Tensor:
    """Soft-threshold differences: shrink each towards 0 by its limit; 0 within the limit."""
    return (differences - limits).relu() - (-differences - limits).relu()


@contextmanager
def training(layers: list[_BatchNorm]) -> Iterator[None]:
    """A context in which these layers are in training mode."""
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


class Memory:
    """Prediction-balanced reservoir sampling (the paper's Section 3.2).

    Args:
        capacity: images at most.
        seed: of its random choices.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.random = random.Random(seed)
        self.classes: defaultdict[int, list[Tensor]] = defaultdict(list)
        self.num_seen: Counter[int] = Counter()

    def add(self, image: Tensor, label: int) -> None:
        """Add an image [3,H,W] of the predicted class `label`.

        In a full memory it replaces a random image of one of the largest classes. If its own class
        is one of them, it replaces an image of that class, with the probability of reservoir
        sampling.
        """
        self.num_seen[label] += 1
        if sum(map(len, self.classes.values())) < self.capacity or self._make_room(label):
            self.classes[label].append(image.clone())

    def content(self) -> Tensor:
        """Images [n,3,H,W], by class."""
        return torch.stack([image for label in sorted(self.classes)
                            for image in self.classes[label]])

    def _make_room(self, label: int) -> bool:
        """Remove an image for a new one of class `label`; return False if that one is rejected."""
        most = max(map(len, self.classes.values()))
        largest = [other for other in sorted(self.classes) if len(self.classes[other]) == most]
        if label not in largest:
            label = self.random.choice(largest)
        elif self.random.uniform(0, 1) > most / self.num_seen[label]:
            return False
        self.classes[label].pop(self.random.randrange(most))
        return True
