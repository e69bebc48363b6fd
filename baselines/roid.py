"""ROID: universal test-time adaptation by weight ensembling, diversity weights and a prior."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, between, choose, positive
from tta_apm.method import Method
from tta_apm.toolbox.adapted import Adapted
from tta_apm.toolbox.augment import random_view
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.norm_layers import check_batch, norm_layers, train_only

PRIORS = ("probabilities", "logits", "none")
CLIP = 0.99  # of probabilities in the likelihood ratio
EPSILON = 1e-5  # of the ratio


class Roid(Method):
    """Universal test-time adaptation (Marsden, Döbler and Yang, WACV 2024).

    Online, on the scales and shifts of the normalisation layers, each batch normalised by its own
    statistics. The diversity of an image is 1 - cosine of its prediction and the moving average of
    predictions, its certainty the negative entropy; both are scaled to 0 ... 1 in the batch. Images
    of less than the batch's mean diversity are left out, the others are weighed by
    exp(diversity · certainty / τ). Loss: the soft likelihood ratio, and a symmetric cross-entropy
    with an augmented view. After the step the weights move a little back to the source's. The
    probabilities from before the step are multiplied by a smoothed prior of the classes in the
    batch, so that an image's logits depend on its whole batch.

    It departs from the authors' code thus: the prior multiplies probabilities, as the paper means
    it; theirs multiplies logits, so that a frequent class of negative logit loses by it (`prior`
    "logits" does so). What is equal for the whole batch, e.g. for a single image, is scaled to 0
    and not to 0/0. The loss is divided by the number of images in the batch and not by the
    configured batch size. Where batch statistics are used, an image that is left over alone gets no
    view, which would be a batch of one.

    Args:
        backbone: a classifier with normalisation layers.
        lr: learning rate; 1e-3 (adam, batches of 200) is CIFAR's, 2.5e-4 (sgd, 64) ImageNet-C's.
        optimizer: "adam" (betas .9, .999) or "sgd" (momentum .9).
        temperature: τ of the weights exp(diversity · certainty / τ).
        momentum: what the moving average of predictions keeps of itself.
        ensembling: the share of the way back to the source's weights after each step.
        prior: "probabilities", "logits" (the authors' code) or "none".
        seed: of the views.

    Raises:
        UserError: for a backbone without normalisation layers or for values out of range.
        ValueError: for a batch of one image where batch statistics are used.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, optimiser and mean prediction"

    # The temperature is a third, as a literal: so the signature is read without importing torch.
    def __init__(self, backbone: Classifier, *, lr: float = 1e-3, optimizer: str = "adam",
                 temperature: float = 0.3333333333333333, momentum: float = 0.9,
                 ensembling: float = 0.01, prior: str = "probabilities", seed: int = 42) -> None:
        super().__init__()
        at_least(0, "roid", lr=lr)
        positive("roid", temperature=temperature)
        between(0, 1, "roid", momentum=momentum, ensembling=ensembling)
        choose("roid", "prior", prior, PRIORS)
        self.temperature = temperature
        self.momentum = momentum
        self.ensembling = ensembling
        self.prior = prior
        self.seed = seed
        self.model = copy.deepcopy(backbone)
        self.uses_batch_statistics = use_batch_statistics(self.model)
        parameters = train_only(self.model, norm_layers(self.model), "roid")
        self.adapted = Adapted(parameters, lr=lr, optimizer=optimizer, owner="roid")
        self.reset()

    def reset(self) -> None:
        """The source's scales and shifts, empty optimiser and average, the generator's start."""
        self.adapted.restore()
        self.mean_prediction: Tensor | None = None  # [K], uniform before the first batch
        self.generator = torch.Generator().manual_seed(self.seed)

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "roid")
        with torch.enable_grad():
            logits = self.model(images)
            weights = self._weights(logits.detach())
            self.adapted.step(self._loss(images, logits, weights))
        self.adapted.pull(self.ensembling)
        return self._with_prior(logits.detach())

    def _weights(self, logits: Tensor) -> Tensor:
        """How much each image [B] counts, 0 for those of little diversity."""
        probabilities = logits.softmax(-1)
        if self.mean_prediction is None:
            self.mean_prediction = torch.full_like(logits[0], 1 / logits.shape[1])
        diversity = scaled(1 - F.cosine_similarity(probabilities, self.mean_prediction[None]))
        certainty = scaled(-entropy(logits))
        self.mean_prediction = probabilities.mean(0).lerp(self.mean_prediction, self.momentum)
        weights = (diversity * certainty / self.temperature).exp()
        return weights.masked_fill(diversity < diversity.mean(), 0)

    def _loss(self, images: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        counts = weights > 0
        chosen = logits[counts]
        self.did["updated"] += len(chosen)
        losses = soft_likelihood_ratio(chosen)
        if len(chosen) > 1 or not self.uses_batch_statistics:
            view = random_view(images[counts], self.generator, padding="reflect",
                               blur_and_noise=False)
            losses = losses + symmetric_cross_entropy(self.model(view), chosen)
        return (losses * weights[counts]).sum() / len(images)

    def _with_prior(self, logits: Tensor) -> Tensor:
        if self.prior == "none":
            return logits
        prior = smoothed_prior(logits.softmax(-1))
        return logits * prior if self.prior == "logits" else logits.log_softmax(-1) + prior.log()


def scaled(values: Tensor) -> Tensor:
    """Values [B] moved and scaled to 0 ... 1; all 0 if they are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """-Σ p log(p / (1 - p)) [B] of logits [B,K], p clipped at .99."""
    p = logits.softmax(-1).clamp(max=CLIP)
    return -(p * (p / (1 - p) + EPSILON).log()).sum(-1)


def symmetric_cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Mean of the two cross-entropies of the softmax of logits [B,K] -> [B]."""
    return -(second.softmax(-1) * first.log_softmax(-1)
             + first.softmax(-1) * second.log_softmax(-1)).sum(-1) / 2


def smoothed_prior(probabilities: Tensor) -> Tensor:
    """Mean [K] of probabilities [B,K], smoothed the more, the fewer images there are."""
    size, num_classes = probabilities.shape
    mean = probabilities.mean(0)
    smooth = max(1 / size, 1 / num_classes) / mean.max()
    return (mean + smooth) / (1 + smooth * num_classes)
