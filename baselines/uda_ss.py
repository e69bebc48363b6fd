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
from tta_apm.method import DomainImages, Method, Source
from tta_apm.toolbox.head import Head
from tta_apm.toolbox.views import pad_crop_views


class UdaSs(Method):
    """Unsupervised domain adaptation through self-supervision (Sun, Tzeng, Darrell and Efros 2019).

    Offline, and no adaptation of a given network: for each domain a new one of the backbone's
    architecture is trained, on labelled source images and on the domain's images without labels.
    Updates alternate: one on telling by which of four turns each image of a batch, half of it
    source and half of it the domain, was turned (a linear layer on the penultimate features); one
    on the classes of a batch of source images. Each has an SGD of its own over the layers that
    both share. Batch statistics mix both sets of images in the first and are the source's in the
    second; running statistics, by which it predicts, follow both.

    It predicts by the last epoch's network. The authors choose an epoch by the error on held-out
    source images and the distance of mean features.

    It departs from the authors' code in four ways: weights start as torch's layers draw them; both
    learning rates fall at the milestones, where the code's second one does not; the layer that
    tells turns is not decayed by the other optimiser; and turning is the only task (no mirroring,
    no quadrants), as in the tables of TTT and APM.

    Args:
        backbone: a classifier with a linear last layer, for its architecture; its weights do not
            count.
        epochs: over the source images.
        milestones: epochs after which learning rates fall to a tenth.
        lr: learning rate of both SGDs (momentum .9, weight decay 5e-4).
        batch_size: of source images, and of the images to be turned.
        flip: whether images are mirrored, half of the times, beside being cropped.
        digits: in place of turns by 90 and 180 degrees, after which some digits cannot be told
            apart, images are transposed and mirrored.
        seed: of weights, order, crops and turns.
        source: labelled source images.

    Raises:
        UserError: for values out of range, without source images, or for a network with parameters
            that torch does not know how to draw.
    """

    needs = "classifier"
    scope = "domain"

    def __init__(self, backbone: Classifier, *, epochs: int = 15,
                 milestones: Sequence[int] = (5, 10), lr: float = 0.1, batch_size: int = 128,
                 flip: bool = True, digits: bool = False, seed: int = 42,
                 source: Source | None = None) -> None:
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
        self.model = copy.deepcopy(backbone).cpu()  # where one seed draws the same on any machine
        draw_weights(self.model, seed)
        self.model.to(backbone.mean.device)
        self.head = Head(self.model, "uda_ss")
        self.start = copy.deepcopy(self.model.state_dict())

    def reset(self) -> None:
        """The weights as they were drawn; each domain has optimisers of its own."""
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
        """All parameters but those of the last layer; and a new layer, which tells turns."""
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
        """Positions of `count` images in batches, in a new order once all have come."""
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
    """Square images [N,3,S,S], each turned by `turns` [N] quarters; with `digits` by transposing
    for one and mirroring for two."""
    turned = rotate(images, turns)
    if digits:
        turned[turns == 1] = images[turns == 1].transpose(-2, -1)
        turned[turns == 2] = images[turns == 2].flip(-1)
    return turned


def draw_weights(network: nn.Module, seed: int) -> None:
    """Draw all weights of a network on the CPU anew, as torch's layers do.

    UserError for parameters that belong to no such layer.
    """
    layers: list[Any] = [layer for layer in network.modules() if hasattr(layer, "reset_parameters")]
    known = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    for name, parameter in network.named_parameters():
        if id(parameter) not in known:
            raise UserError(f"uda_ss: trains a network from scratch, and nothing tells how the "
                            f"parameter {name} of {type(network).__name__} is drawn")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()
