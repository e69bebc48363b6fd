"""LAME: Laplacian adjusted maximum-likelihood estimation of a batch's predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, choose
from tta_apm.method import Method
from tta_apm.toolbox.head import Head

AFFINITIES = ("knn", "rbf")
MAX_ROUNDS = 100
TOLERANCE = 1e-8  # change of the energy at which the updates stop


class Lame(Method):
    """Parameter-free online test-time adaptation (Boudiaf et al., CVPR 2022).

    Written from the paper alone. The network is not changed. The predictions of a batch are
    adjusted, so that images with similar features get similar predictions but stay close to their
    own. It suits streams in which neighbouring images share a class. On shuffled streams it raises
    the error, since the nearest images in a batch are then often of other classes. No state is
    carried from batch to batch, and batches should be large.

    With p [B,K] the softmaxes and W [B,B] the affinities of the features, the update
    Z = softmax(log p + W Z) is repeated, from Z = p, until the energy
    Σ Z (log Z - log p) - ½ Σ Z (W Z) changes by less than 1e-8, at most 100 times. The logits
    returned are log Z. For a batch of one image they are log p.

    Args:
        backbone: a classifier whose last layer is linear.
        affinity: "knn" is 1 for the `neighbours` most similar other images and 0 for the rest,
            averaged over both directions; "rbf" is exp(-d²/2σ²) with d the distance of unit
            features and σ the mean distance to the `neighbours`-th neighbour. The paper selects
            affinity and k on validation corruptions.
        neighbours: k; at most the number of other images in the batch is used.

    Raises:
        UserError: for values out of range or a classifier whose last layer is not linear.
    """

    needs = "classifier"
    scope = "batch"

    def __init__(self, backbone: Classifier, *, affinity: str = "knn", neighbours: int = 5) -> None:
        super().__init__()
        choose("lame", "affinity", affinity, AFFINITIES)
        at_least(1, "lame", neighbours=neighbours)
        self.affinity = affinity
        self.neighbours = neighbours
        self.head = Head(backbone, "lame")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits, features = self.head.features(images)
        if len(images) == 1:
            return logits.log_softmax(-1)
        return adjust(logits, affinities(features, self.affinity, self.neighbours))

    def reset(self) -> None:
        """Do nothing: no state is carried from batch to batch."""


def affinities(features: Tensor, kind: str, neighbours: int) -> Tensor:
    """Symmetric affinities [B,B] of features [B,D]; "knn" or "rbf", see Lame."""
    features = F.normalize(features, dim=-1)
    # Squared distances of unit features. Rounding errors may make them slightly negative.
    squares = (2 - 2 * features @ features.T).clamp(min=0)
    others = squares.clone().fill_diagonal_(torch.inf)
    nearest = others.topk(min(neighbours, len(features) - 1), largest=False)
    if kind == "knn":
        chosen = torch.zeros_like(squares).scatter_(1, nearest.indices, 1.0)
        return (chosen + chosen.T) / 2
    width = nearest.values[:, -1].sqrt().mean()
    if width == 0:  # every image equals its k nearest neighbours
        return torch.ones_like(squares)
    return (-squares / (2 * width ** 2)).exp().fill_diagonal_(1)


def adjust(logits: Tensor, weights: Tensor) -> Tensor:
    """Adjusted log-probabilities log Z [B,K], from logits [B,K] and affinities W [B,B]."""
    log_p = logits.log_softmax(-1)
    log_z, last_energy = log_p, torch.inf
    for _ in range(MAX_ROUNDS):
        log_z = (log_p + weights @ log_z.exp()).log_softmax(-1)
        energy = laplacian_energy(log_z, log_p, weights)
        if abs(last_energy - energy) < TOLERANCE:
            break
        last_energy = energy
    return log_z


def laplacian_energy(log_z: Tensor, log_p: Tensor, weights: Tensor) -> float:
    """Σ Z (log Z - log p) - ½ Σ Z (W Z), from log Z [B,K], log p [B,K] and W [B,B]."""
    z = log_z.exp()
    return ((z * (log_z - log_p)).sum() - (z * (weights @ z)).sum() / 2).item()
