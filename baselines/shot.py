"""SHOT: source hypothesis transfer, offline; also SHOT-IM by its settings."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least
from tta_apm.method import DomainImages, Method
from tta_apm.toolbox.head import Head

EPSILON = 1e-5  # added in logarithms, as in the authors' code, so that they are finite
ROUNDS = 2  # of pseudo-labelling: class centres by probabilities, then by the first round's labels


class Shot(Method):
    """Source hypothesis transfer (Liang, Hu and Feng, ICML 2020).

    Offline, without source images: it trains for `epochs` on all images of a domain, then predicts
    them with the last epoch's network. The last linear layer, the hypothesis, is frozen. All layers
    before it are trained with two losses: information maximisation, which makes each prediction
    certain and the predictions together diverse; and the cross-entropy with pseudo-labels, which
    are set at the start of each epoch: every image gets the class whose centre of features is
    nearest by cosine. With `cls_par` 0 it is SHOT-IM.

    In training, batches are normalised by their own statistics, and the running statistics, with
    which it predicts, are updated by the domain's images. A batch of one image is skipped.

    Departures from the authors' code: the networks here have no bottleneck layer and no
    weight-normalised last layer, so all trained layers have the learning rate of their trunk;
    images are not augmented, as in their code for digits; dropout stays off. Their code also logs
    the best epoch, which cannot be determined without labels.

    Args:
        backbone: a classifier whose last layer is linear.
        epochs: passes over the images of a domain.
        lr: initial learning rate of SGD (Nesterov momentum 0.9, weight decay 1e-3); it decays as
            (1 + 10 t/T)^-0.75 over the T updates.
        batch_size: batch size of training, independent of the stream's.
        cls_par: weight of the cross-entropy with pseudo-labels; 0.3 for photographs, 0.1 for
            digits.
        ent_par: weight of information maximisation.
        seed: of the order of the images.

    Raises:
        UserError: for values out of range or a classifier whose last layer is not linear.
    """

    needs = "classifier"
    scope = "domain"

    def __init__(self, backbone: Classifier, *, epochs: int = 15, lr: float = 1e-3,
                 batch_size: int = 64, cls_par: float = 0.3, ent_par: float = 1.0,
                 seed: int = 42) -> None:
        super().__init__()
        at_least(0, "shot", epochs=epochs, lr=lr, cls_par=cls_par, ent_par=ent_par)
        at_least(2, "shot", batch_size=batch_size)
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.cls_par = cls_par
        self.ent_par = ent_par
        self.seed = seed
        self.model = copy.deepcopy(backbone)
        self.head = Head(self.model, "shot")
        self.source = copy.deepcopy(self.model.state_dict())

    def reset(self) -> None:
        """Return to the source's weights and running statistics; each domain has a new optimiser.
        """
        self.model.load_state_dict(self.source)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def prepare(self, images: DomainImages) -> None:
        optimizer = torch.optim.SGD(self._trained(images), lr=self.lr, momentum=0.9,
                                    weight_decay=1e-3, nesterov=True)
        generator = torch.Generator().manual_seed(self.seed)
        update, num_updates = 0, self.epochs * len(self._batches(torch.arange(len(images))))
        for _ in range(self.epochs):
            labels = self._pseudo_labels(images) if self.cls_par else None
            self._use_batch_statistics(True)
            for batch in self._batches(torch.randperm(len(images), generator=generator)):
                update += 1
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * (1 + 10 * update / num_updates) ** -0.75
                with torch.enable_grad():
                    logits = self.model(images.batch(batch))
                    loss = self.ent_par * information_loss(logits)
                    if labels is not None:
                        loss = loss + self.cls_par * F.cross_entropy(logits, labels[batch])
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            self._use_batch_statistics(False)
        self.model.requires_grad_(False)

    def _trained(self, images: DomainImages) -> list[Tensor]:
        """All parameters except the last layer's, which is found in a forward of one image."""
        with torch.no_grad():
            self.head.features(images.batch(torch.arange(1)))
        self.model.requires_grad_(True)
        for parameter in self.head.parameters:
            parameter.requires_grad_(False)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _batches(self, order: Tensor) -> list[Tensor]:
        return [batch for batch in order.split(self.batch_size) if len(batch) > 1]

    def _use_batch_statistics(self, use: bool) -> None:
        """Normalise by the batch's statistics and update the running ones, or by the running ones.
        """
        for layer in self.model.modules():
            if isinstance(layer, _BatchNorm):
                layer.train(use)

    @torch.no_grad()
    def _pseudo_labels(self, images: DomainImages) -> Tensor:
        """Pseudo-labels [N] of all images."""
        parts = [self.head.features(images.batch(batch))
                 for batch in torch.arange(len(images)).split(self.batch_size)]
        logits, features = (torch.cat(part) for part in zip(*parts))
        return pseudo_labels(logits.softmax(-1), features)


def pseudo_labels(probabilities: Tensor, features: Tensor) -> Tensor:
    """Pseudo-labels [N] of images with probabilities [N,K] and features [N,D] (Eq. 4 to 6).

    An image gets the class with the nearest centre by cosine, among classes that have images.
    """
    num_classes = probabilities.shape[1]
    ones = features.new_ones(len(features), 1)
    features = F.normalize(torch.cat([features, ones], 1), dim=1)
    labels, weights = probabilities.argmax(1), probabilities
    for _ in range(ROUNDS):
        centres = weights.T @ features / (weights.sum(0)[:, None] + 1e-8)
        is_empty = F.one_hot(labels, num_classes).sum(0) == 0
        similarity = features @ F.normalize(centres, dim=1).T
        labels = similarity.masked_fill(is_empty, -torch.inf).argmax(1)
        weights = F.one_hot(labels, num_classes).to(features)
    return labels


def information_loss(logits: Tensor) -> Tensor:
    """Mean entropy of predictions minus the entropy of their mean (Eq. 3), from logits [B,K]."""
    probabilities = logits.softmax(-1)
    mean = probabilities.mean(0)
    each = -(probabilities * (probabilities + EPSILON).log()).sum(-1)
    return each.mean() + (mean * (mean + EPSILON).log()).sum()
