"""ROID: test-time adaptation with weight ensembling, diversity weighting and prior correction."""

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
from tta_apm.toolbox.entropy import entropy, symmetric_cross_entropy
from tta_apm.toolbox.norm_layers import check_batch, norm_layers, train_only

PRIORS = ("probabilities", "logits", "none")
MAX_PROBABILITY = 0.99  # in the likelihood ratio
EPSILON = 1e-5  # added to the ratio


class Roid(Method):
    """Universal test-time adaptation (Marsden, Döbler and Yang, WACV 2024).

    Online, on the scales and shifts of the normalisation layers. Each batch is normalised by its
    own statistics. An image's diversity is 1 - the cosine between its prediction and the moving
    average of predictions; its certainty is the negative entropy. Both are scaled to [0,1] within
    the batch. Images below the batch's mean diversity are left out; the others have the weight
    exp(diversity · certainty / τ). The loss is the soft likelihood ratio plus a symmetric
    cross-entropy with an augmented view. After the step the weights are interpolated with the
    source's. The probabilities from before the step are multiplied by a smoothed prior of the
    classes in the batch, so an image's logits depend on its whole batch.

    Departures from the authors' code:
    - The prior multiplies probabilities, as in the paper. Theirs multiplies logits, which lowers a
      frequent class if its logit is negative (`prior` "logits" does the same).
    - Values that are equal for the whole batch, e.g. for a single image, are scaled to 0, not to
      0/0.
    - The loss is divided by the number of images in the batch, not by the configured batch size.
    - With batch statistics, a single selected image gets no view, which would be a batch of one.

    Args:
        backbone: a classifier with normalisation layers.
        lr: learning rate; the paper's is 1e-3 (adam, batches of 200) for CIFAR, 2.5e-4 (sgd, 64)
            for ImageNet-C.
        optimizer: "adam" (betas 0.9, 0.999) or "sgd" (momentum 0.9).
        temperature: τ of the weights exp(diversity · certainty / τ).
        momentum: weight of the old moving average of predictions in its update.
        ensembling: weight of the source's values in the interpolation after each step.
        prior: what the prior multiplies: "probabilities", "logits" (the authors' code) or "none".
        seed: of the views.

    Raises:
        UserError: for a backbone without normalisation layers or for values out of range.
        ValueError: for a batch of one image where batch statistics are used.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, optimiser and mean prediction"

    # The temperature is 1/3, written as a literal, since the registry reads signatures as text.
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
        """Return to the source's scales and shifts; renew optimiser, average and generator."""
        self.adapted.restore()
        self.mean_prediction: Tensor | None = None  # [K], uniform before the first batch
        self.generator = torch.Generator().manual_seed(self.seed)

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "roid")
        with torch.enable_grad():
            logits = self.model(images)
            weights = self._weights(logits.detach())
            self.adapted.step(self._loss(images, logits, weights))
        self.adapted.ensemble_with_source(self.ensembling)
        return self._with_prior(logits.detach())

    def _weights(self, logits: Tensor) -> Tensor:
        """The weight [B] of each image, 0 for those below the mean diversity; updates the average.
        """
        probabilities = logits.softmax(-1)
        if self.mean_prediction is None:
            self.mean_prediction = torch.full_like(logits[0], 1 / logits.shape[1])
        diversity = scaled(1 - F.cosine_similarity(probabilities, self.mean_prediction[None]))
        certainty = scaled(-entropy(logits))
        self.mean_prediction = probabilities.mean(0).lerp(self.mean_prediction, self.momentum)
        weights = (diversity * certainty / self.temperature).exp()
        return weights.masked_fill(diversity < diversity.mean(), 0)

    def _loss(self, images: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        mask = weights > 0
        selected = logits[mask]
        self.did["updated"] += len(selected)
        losses = soft_likelihood_ratio(selected)
        if len(selected) > 1 or not self.uses_batch_statistics:
            view = random_view(images[mask], self.generator, padding="reflect",
                               blur_and_noise=False)
            losses = losses + symmetric_cross_entropy(self.model(view), selected)
        return (losses * weights[mask]).sum() / len(images)

    def _with_prior(self, logits: Tensor) -> Tensor:
        """Logits [B,K] corrected by the smoothed prior of the batch."""
        if self.prior == "none":
            return logits
        prior = smoothed_prior(logits.softmax(-1))
        return logits * prior if self.prior == "logits" else logits.log_softmax(-1) + prior.log()


def scaled(values: Tensor) -> Tensor:
    """Values [B] shifted and scaled to [0,1]; all 0 if they are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """-Σ p log(p / (1 - p)) [B], with p the softmax of logits [B,K], clipped at 0.99."""
    p = logits.softmax(-1).clamp(max=MAX_PROBABILITY)
    return -(p * (p / (1 - p) + EPSILON).log()).sum(-1)


def smoothed_prior(probabilities: Tensor) -> Tensor:
    """Mean [K] of probabilities [B,K], smoothed more strongly for smaller batches."""
    size, num_classes = probabilities.shape
    mean = probabilities.mean(0)
    smooth = max(1 / size, 1 / num_classes) / mean.max()
    return (mean + smooth) / (1 + smooth * num_classes)
