"""SHOT: source hypothesis transfer, offline; with it SHOT-IM."""

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

EPSILON = 1e-5  # inside logarithms, as in the authors' code: empty classes stay finite
ROUNDS = 2  # of pseudo-labels: centres by probabilities, then by the labels of the first round


class Shot(Method):
    """Source hypothesis transfer (Liang, Hu and Feng, ICML 2020).

    Offline and without source images: it trains for `epochs` on all images of a domain, then
    predicts them by the last epoch's network. The last linear layer stays the source's, the
    hypothesis; all before it is trained such that each prediction is certain and the predictions
    together are diverse (information maximisation), and on pseudo-labels: at the start of each
    epoch every image gets the class whose centre of features is nearest by cosine. With `cls_par` 0
    it is SHOT-IM.

    While it trains, batches are normalised by their own statistics, and the running ones, by which
    it predicts, become the domain's. A batch of one image is skipped.

    It departs from the authors' code in three ways: the networks here have no bottleneck layer and
    no weight-normalised last layer, so that all that trains has the learning rate of their trunk;
    images are not augmented, as in their code for digits; dropout stays off. The best epoch, which
    their code logs, cannot be known without labels.

    Args:
        backbone: a classifier whose last layer is linear.
        epochs: over the images of a domain.
        lr: learning rate of SGD (Nesterov momentum .9, weight decay 1e-3) at the start; it falls as
            (1 + 10 t/T)^-.75 over the T updates.
        batch_size: of training, whatever that of the stream.
        cls_par: weight of the cross-entropy of pseudo-labels; .3 for photographs, .1 for digits.
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
        """The source's weights and running statistics; each domain has an optimiser of its own."""
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
        """All parameters but those of the last layer, which is found as it classifies an image."""
        with torch.no_grad():
            self.head.features(images.batch(torch.arange(1)))
        self.model.requires_grad_(True)
        for parameter in self.head.parameters:
            parameter.requires_grad_(False)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _batches(self, order: Tensor) -> list[Tensor]:
        return [batch for batch in order.split(self.batch_size) if len(batch) > 1]

    def _use_batch_statistics(self, use: bool) -> None:
        """Normalise by a batch's statistics and let the running ones follow; or by the latter."""
        for layer in self.model.modules():
            if isinstance(layer, _BatchNorm):
                layer.train(use)

    @torch.no_grad()
    def _pseudo_labels(self, images: DomainImages) -> Tensor:
        """Classes [N] of all images."""
        parts = [self.head.features(images.batch(batch))
                 for batch in torch.arange(len(images)).split(self.batch_size)]
        logits, features = (torch.cat(part) for part in zip(*parts))
        return pseudo_labels(logits.softmax(-1), features)


def pseudo_labels(probabilities: Tensor, features: Tensor) -> Tensor:
    """Classes [N] of images with probabilities [N,K] and features [N,D] (Eq. 4 to 6).

    Each gets the class with the nearest centre by cosine, of those that are the class of any image.
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
    """Mean entropy of predictions [B,K] less the entropy of their mean (Eq. 3)."""
    probabilities = logits.softmax(-1)
    mean = probabilities.mean(0)
    each = -(probabilities * (probabilities + EPSILON).log()).sum(-1)
    return each.mean() + (mean * (mean + EPSILON).log()).sum()
