"""EATA: efficient anti-forgetting test-time adaptation; also ETA and RDumb by its settings."""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.tensor_cache import precomputed
from tta_apm.errors import UserError, at_least, positive
from tta_apm.method import Method, SourceImages
from tta_apm.toolbox.adapted import Adapted
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.filters import MeanPrediction, max_entropy
from tta_apm.toolbox.norm_layers import check_batch, norm_layers, train_only


class Eata(Method):
    """Efficient anti-forgetting test-time adaptation (Niu et al., ICML 2022).

    Online, on the scales and shifts of the normalisation layers. Each batch is normalised by its
    own statistics. An image is selected if its prediction is certain (entropy below
    `entropy_margin`·ln K) and differs from the moving average of selected predictions (|cosine|
    below `diversity_margin`). The loss is the mean entropy of the selected images, in which more
    certain ones weigh more, plus a penalty on the distance from the source's values, weighted by
    their Fisher information. If no image is selected, there is no step. The logits returned are
    from before the step.

    With `fisher_alpha` 0 this is ETA, which needs no source images. With `restore_every` 1000
    besides, it is RDumb (Press et al., NeurIPS 2023).

    Departures from the authors' code: the images for the Fisher information are source images,
    while theirs are ImageNet's validation images, from which ImageNet-C is made; `reset()` empties
    the moving average too; dropout stays off.

    Args:
        backbone: a classifier with normalisation layers.
        lr: learning rate; the authors' for ImageNet-C is 2.5e-4 for a ResNet-50, 1e-3 for a vision
            transformer; for CIFAR-10-C others use 1e-3 with adam and batches of 200.
        optimizer: "sgd" (momentum 0.9) or "adam" (betas 0.9, 0.999).
        entropy_margin: upper bound of a selected image's entropy, as a fraction of ln K.
        diversity_margin: upper bound of a selected image's |cosine|. Fewer classes need a larger
            one: 0.05 is for ImageNet's 1,000, 0.4 for 10 and 0.1 for 100.
        momentum: weight of the old moving average in its update.
        fisher_alpha: weight of the penalty; 2000 for ImageNet, 1 for CIFAR-10.
        num_fisher_images: source images for the Fisher information.
        fisher_batch_size: their batch size, on which the result depends: squared are the gradients
            of a batch's mean loss.
        restore_every: number of batches after which the method resets itself; 0 for never.
        seed: of the choice of source images.
        source: source images; their labels are not used.

    Raises:
        UserError: for a backbone without normalisation layers, for values out of range, or for a
            penalty without source images.
        ValueError: for a batch of one image where batch statistics are used.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights, optimiser and mean prediction"
    skip_setup = {"num_fisher_images": 2}

    def __init__(self, backbone: Classifier, *, lr: float = 2.5e-4, optimizer: str = "sgd",
                 entropy_margin: float = 0.4, diversity_margin: float = 0.05,
                 momentum: float = 0.9, fisher_alpha: float = 2000.0,
                 num_fisher_images: int = 2000, fisher_batch_size: int = 64,
                 restore_every: int = 0, seed: int = 42,
                 source: SourceImages | None = None) -> None:
        super().__init__()
        at_least(0, "eata", lr=lr, fisher_alpha=fisher_alpha, restore_every=restore_every,
                 momentum=momentum)
        at_least(2, "eata", num_fisher_images=num_fisher_images,
                 fisher_batch_size=fisher_batch_size)
        positive("eata", entropy_margin=entropy_margin, diversity_margin=diversity_margin)
        if fisher_alpha and source is None:
            raise UserError("eata: needs source images for its Fisher information, and the data "
                            "set has none; with fisher_alpha 0 it runs without them (as ETA)")
        self.entropy_margin = entropy_margin
        self.diversity_margin = diversity_margin
        self.fisher_alpha = fisher_alpha
        self.restore_every = restore_every
        self.model = copy.deepcopy(backbone)
        self.uses_batch_statistics = use_batch_statistics(self.model)
        parameters = train_only(self.model, norm_layers(self.model), "eata")
        self.adapted = Adapted(parameters, lr=lr, optimizer=optimizer, owner="eata")
        self.mean_prediction = MeanPrediction(momentum)
        self.fisher: list[Tensor] = []
        if fisher_alpha and source is not None:
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(source), generator=generator)[:num_fisher_images]
            known = precomputed("fisher", partial(self._fisher, source, chosen,
                                                  fisher_batch_size))
            self.fisher = [known[str(index)].to(parameter) for index, parameter
                           in enumerate(self.adapted.parameters)]
        self.reset()

    def reset(self) -> None:
        """Return to the source's scales and shifts; renew optimiser and mean prediction."""
        self.adapted.restore()
        self.mean_prediction.reset()
        self.num_batches = 0

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "eata")
        with torch.enable_grad():
            logits = self.model(images)
            loss = self._loss(logits)
            if loss is not None:
                self.adapted.step(loss)
        self.num_batches += 1
        if self.num_batches == self.restore_every:
            self.reset()
            self.did["resets"] += 1
        return logits.detach()

    def _loss(self, logits: Tensor) -> Tensor | None:
        """Weighted entropy of the selected images plus the penalty; None if none is selected."""
        entropies = entropy(logits)
        probabilities = logits.detach().softmax(-1)
        margin = self.entropy_margin * max_entropy(logits.shape[1])
        mask = ((entropies < margin)
                & (self.mean_prediction.similarity(probabilities) < self.diversity_margin))
        self.mean_prediction.update(probabilities[mask])
        selected = entropies[mask]
        if not len(selected):
            return None
        self.did["updated"] += len(selected)
        loss = (selected * (margin - selected.detach()).exp()).mean()
        return loss + self.fisher_alpha * self._penalty() if self.fisher else loss

    def _penalty(self) -> Tensor:
        """Squared distance from the source's values, weighted by the Fisher information."""
        terms = [(information * (parameter - source) ** 2).sum() for information, parameter, source
                 in zip(self.fisher, self.adapted.parameters, self.adapted.source)]
        return torch.stack(terms).sum()

    def _fisher(self, source: SourceImages, chosen: Tensor, batch_size: int) -> dict[str, Tensor]:
        """Diagonal Fisher information of each adapted parameter, by the parameter's number.

        It is the mean, over batches, of the squared gradient of the cross-entropy with the
        model's own predictions as labels.
        """
        # Batches of equal size: a last batch of one image would have no batch statistics.
        parts = chosen.tensor_split(math.ceil(len(chosen) / batch_size))
        total = [torch.zeros_like(parameter) for parameter in self.adapted.parameters]
        device = total[0].device  # source images that a caller passes may be on another one
        for part in parts:
            with torch.enable_grad():
                logits = self.model(source.batch(part)[0].to(device))
                loss = F.cross_entropy(logits, logits.detach().argmax(-1))
                gradients = torch.autograd.grad(loss, self.adapted.parameters)
            for sum_, gradient in zip(total, gradients):
                sum_ += gradient ** 2
        return {str(index): sum_ / len(parts) for index, sum_ in enumerate(total)}
