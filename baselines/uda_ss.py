"""UDA-SS: unsupervised domain adaptation through self-supervision, offline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.rotation import NUM_ROTATIONS, rotate
from tta_apm.errors import UserError, at_least
from tta_apm.method import DomainImages, Method, SourceImages
from tta_apm.toolbox.head import Head
from tta_apm.toolbox.views import pad_crop_views


class UdaSs(Method):
    """Unsupervised domain adaptation through self-supervision (Sun, Tzeng, Darrell and Efros 2019).

    Offline. No given network is adapted: for each domain, a new network of the backbone's
    architecture is trained on labelled source images and on the domain's images without labels.
    Two kinds of updates alternate: one on predicting the rotation (of four) of each image in a
    batch, half of which are source images and half the domain's, with a linear layer on the
    penultimate features; and one on the classes of a batch of source images. Each kind has its own
    SGD over the shared layers. Batch statistics are over both sets of images in the first kind and
    over source images in the second; both update the running statistics, with which it predicts.

    It predicts with the last epoch's network. The authors choose an epoch by the error on held-out
    source images and the distance of mean features.

    Departures from the authors' code: weights are initialised as torch's layers do; both learning
    rates fall at the milestones (in the code the second one does not); the rotation layer has no
    weight decay by the other optimiser; all images are cropped and mirrored at random (in the code
    none is); and rotation is the only task (no mirroring, no quadrants), as in the tables of TTT
    and APM.

    Args:
        backbone: a classifier with a linear last layer, of which only the architecture is used.
        epochs: passes over the source images.
        milestones: epochs after which the learning rates fall to a tenth.
        lr: learning rate of both SGDs (momentum 0.9, weight decay 5e-4).
        batch_size: number of source images, and of images to rotate, in a batch.
        flip: whether cropped images are also mirrored with probability 1/2.
        digits: whether images are transposed and mirrored instead of rotated by 90 and 180 degrees,
            after which some digits look like others.
        seed: of weights, order, crops and rotations.
        source: labelled source images.

    Raises:
        UserError: for values out of range, without source images, or for a network with parameters
            that torch cannot initialise.
    """

    needs = "classifier"
    scope = "domain"

    def __init__(self, backbone: Classifier, *, epochs: int = 15,
                 milestones: Sequence[int] = (5, 10), lr: float = 0.1, batch_size: int = 128,
                 flip: bool = True, digits: bool = False, seed: int = 42,
                 source: SourceImages | None = None) -> None:
        super().__init__()
        at_least(0, "uda_ss", epochs=epochs, lr=lr)
        at_least(2, "uda_ss", batch_size=batch_size)
        if source is None:
            raise UserError("uda_ss: trains on labelled source images, and the data set has none")
        self.epochs = epochs
        self.milestones = milestones
        self.lr = lr
        self.batch_size = batch_size
        self.flip = flip
        self.digits = digits
        self.seed = seed
        self.source = source
        self.model = copy.deepcopy(backbone).cpu()  # one seed gives the same weights on any device
        initialize_weights(self.model, seed)
        self.model.to(backbone.mean.device)
        self.head = Head(self.model, "uda_ss")
        self.start = copy.deepcopy(self.model.state_dict())

    def reset(self) -> None:
        """Return to the initial weights; each domain has new optimisers."""
        self.model.load_state_dict(self.start)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def prepare(self, images: DomainImages) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        shared, turn_layer = self._parts(images)
        classes, turns = (
            torch.optim.SGD(parameters, self.lr, momentum=0.9, weight_decay=5e-4)
            for parameters in ([*shared, *self.head.parameters],
                               [*shared, *turn_layer.parameters()]))
        schedules = [MultiStepLR(optimizer, list(self.milestones))
                     for optimizer in (classes, turns)]
        half = self.batch_size // 2
        of_source, of_domain = (self._without_end(len(images), half)
                                for images in (self.source, images))
        self.model.train()
        for _ in range(self.epochs):
            for batch in self._order(len(self.source)).split(self.batch_size):
                if len(batch) == 1:  # it has no batch statistics
                    continue
                both = torch.cat([self.source.batch(next(of_source))[0],
                                  images.batch(next(of_domain))])
                self._step(turns, lambda: self._turn_loss(both, turn_layer))
                labelled = self.source.batch(batch)
                self._step(classes, lambda: self._class_loss(*labelled))
            for schedule in schedules:
                schedule.step()
        self.model.eval()
        self.model.requires_grad_(False)

    def _parts(self, images: DomainImages) -> tuple[list[nn.Parameter], nn.Linear]:
        """All parameters except the last layer's, and a new layer that predicts rotations."""
        with torch.no_grad():
            _, features = self.head.features(images.batch(torch.arange(1)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            turn_layer = nn.Linear(features.shape[1], NUM_ROTATIONS).to(features)
        self.model.requires_grad_(True)
        last = {id(parameter) for parameter in self.head.parameters}
        return ([parameter for parameter in self.model.parameters() if id(parameter) not in last],
                turn_layer)

    def _order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)

    def _without_end(self, count: int, size: int) -> Iterator[Tensor]:
        """Yield batches of positions of `count` images without end, in a new order for each pass.
        """
        while True:
            yield from self._order(count).split(size)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss().backward()
        optimizer.step()

    def _class_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(self._augmented(images)), labels)

    def _turn_loss(self, images: Tensor, turn_layer: nn.Linear) -> Tensor:
        turns = torch.randint(NUM_ROTATIONS, (len(images),), generator=self.generator)
        turns = turns.to(images.device)
        turned = turn(self._augmented(images), turns, digits=self.digits)
        return F.cross_entropy(turn_layer(self.head.features(turned)[1]), turns)

    def _augmented(self, images: Tensor) -> Tensor:
        return pad_crop_views(images, 1, [self.generator] * len(images), flip=self.flip)[:, 0]


def turn(images: Tensor, turns: Tensor, *, digits: bool) -> Tensor:
    """Rotate square images [N,3,S,S] by `turns` [N] quarter turns each.

    With `digits`, one turn is a transposition and two turns are a mirroring.
    """
    turned = rotate(images, turns)
    if digits:
        turned[turns == 1] = images[turns == 1].transpose(-2, -1)
        turned[turns == 2] = images[turns == 2].flip(-1)
    return turned


def initialize_weights(network: nn.Module, seed: int) -> None:
    """Initialise all weights of a network on the CPU, as torch's layers do.

    Raises:
        UserError: for parameters that belong to no such layer.
    """
    layers: list[Any] = [layer for layer in network.modules() if hasattr(layer, "reset_parameters")]
    known = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    for name, parameter in network.named_parameters():
        if id(parameter) not in known:
            raise UserError(f"uda_ss: trains a network from scratch, and nothing tells how the "
                            f"parameter {name} of {type(network).__name__} is initialised")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()
