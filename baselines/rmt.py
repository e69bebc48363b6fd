"""RMT: robust mean teacher with a contrastive loss to source prototypes and source replay."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.tensor_cache import precomputed
from tta_apm.errors import UserError, at_least, between, choose, positive
from tta_apm.method import Method, SourceImages
from tta_apm.toolbox.adapted import ema_update
from tta_apm.toolbox.augment import random_view
from tta_apm.toolbox.batch_norm import use_batch_statistics
from tta_apm.toolbox.entropy import symmetric_cross_entropy
from tta_apm.toolbox.norm_layers import check_batch

OPTIMIZERS = ("adam", "sgd")
# The authors' limit.
MAX_PROTOTYPE_IMAGES = 100_000


class Rmt(Method):
    """Robust mean teacher (Döbler, Marsden and Yang, CVPR 2023).

    Continual, on all weights of the student. Each batch is normalised by its own statistics. The
    loss has three terms: the symmetric cross-entropy with the mean teacher, on the images and on an
    augmented view of them; a contrastive loss between the projected features of the images, of
    their views and of their nearest source prototypes; and the cross-entropy of labelled source
    images (replay). Then the teacher is updated. The logits returned are the sum of the student's
    and the teacher's, from before the update. Student, teacher, projector and optimiser survive
    from batch to batch until `reset()`, which returns to the state after warm-up.

    Source images are needed for the prototypes (the classes' mean penultimate features, which are
    the input of the last linear layer), for warm-up and for replay. Prototypes and warm-up are
    computed in the constructor. Without source images, `lambda_contrast`, `lambda_source` and
    `num_warm_up` must be 0.

    Departures from the authors' code: dropout stays off; batches of source images are sampled
    independently, not epoch by epoch; classes without source images get no prototype.

    Args:
        backbone: a classifier.
        lr: learning rate; the paper's is 1e-3 for CIFAR-10-C, 1e-2 (sgd, batches of 64) for
            ImageNet-C.
        optimizer: "adam" (betas 0.9, 0.999) or "sgd" (Nesterov momentum 0.9).
        momentum: weight of the teacher's old parameters in its update.
        lambda_contrast: weight of the contrastive loss.
        lambda_source: weight of the cross-entropy of source images.
        temperature: of the contrastive loss.
        projection: width of the projector's two layers.
        num_warm_up: number of source images for warm-up, in which the learning rate rises
            linearly.
        warm_up_batch_size: batch size of source images for warm-up and prototypes. A batch for
            replay has the size of the test batch.
        flip: whether the augmentation mirrors the view with probability 1/2.
        seed: of the projector, the augmentation and the order of source images.
        source: labelled source images.

    Raises:
        UserError: for values out of range, without source images where they are needed, or for a
            backbone without a linear layer.
        ValueError: for a batch of one image, which has no batch statistics.
    """

    needs = "classifier"
    scope = "stream"
    survives = "weights and optimiser"
    skip_setup = {"num_warm_up": 0}
    prototypes: Tensor

    def __init__(self, backbone: Classifier, *, lr: float = 1e-3, optimizer: str = "adam",
                 momentum: float = 0.999, lambda_contrast: float = 1.0,
                 lambda_source: float = 1.0, temperature: float = 0.1, projection: int = 128,
                 num_warm_up: int = 50_000, warm_up_batch_size: int = 200, flip: bool = True,
                 seed: int = 42, source: SourceImages | None = None) -> None:
        super().__init__()
        at_least(0, "rmt", lr=lr, lambda_contrast=lambda_contrast, lambda_source=lambda_source,
                 num_warm_up=num_warm_up)
        at_least(1, "rmt", projection=projection)
        at_least(2, "rmt", warm_up_batch_size=warm_up_batch_size)
        positive("rmt", temperature=temperature)
        between(0, 1, "rmt", momentum=momentum)
        choose("rmt", "optimizer", optimizer, OPTIMIZERS)
        if 0 < num_warm_up < warm_up_batch_size:
            raise UserError(f"rmt: num_warm_up {num_warm_up} is less than one batch: see "
                            f"warm_up_batch_size {warm_up_batch_size}")
        if source is None and (lambda_contrast or lambda_source or num_warm_up):
            raise UserError("rmt: needs source images, and the data set has none; with "
                            "lambda_contrast, lambda_source and num_warm_up 0 it runs without them")
        self.lr = lr
        self.momentum = momentum
        self.lambda_contrast = lambda_contrast
        self.lambda_source = lambda_source
        self.temperature = temperature
        self.warm_up_batch_size = warm_up_batch_size
        self.flip = flip
        self.source = source
        self.generator = torch.Generator().manual_seed(seed)
        self.student = copy.deepcopy(backbone)
        self.uses_batch_statistics = use_batch_statistics(self.student)
        self.teacher = copy.deepcopy(self.student)
        self.student.requires_grad_(True)
        self.projector = nn.Sequential()
        if lambda_contrast:
            inputs = last_linear(self.student).in_features
            self.projector = nn.Sequential(nn.Linear(inputs, projection), nn.ReLU(),
                                           nn.Linear(projection, projection))
            self.projector.to(last_linear(self.student).weight)
        leaves = [*self.student.parameters(), *self.projector.parameters()]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(leaves, lr=lr) if optimizer == "adam" else
            torch.optim.SGD(leaves, lr=lr, momentum=0.9, nesterov=True))
        self._start = precomputed("start", lambda: self._set_up(
            num_warm_up // warm_up_batch_size))
        if lambda_contrast:
            prototypes = self._start["prototypes"].to(leaves[0].device)
            self.register_buffer("prototypes", prototypes, persistent=False)
        self.reset()

    def reset(self) -> None:
        """Return student, teacher, projector, optimiser and generator to the end of warm-up."""
        self.load_state_dict(_part(self._start, "weights"))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(self._start, "optimizer").items():
            index, _, key = name.partition(" ")
            states.setdefault(int(index), {})[key] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": [
            {**group, "lr": self._start["lr"].item()} for group in groups]})
        self.optimizer.zero_grad()
        self.generator.set_state(self._start["generator"])

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.uses_batch_statistics, "rmt")
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        with torch.enable_grad():
            logits, features = logits_and_features(self.student, images)
            view_logits, view_features = logits_and_features(
                self.student, random_view(images, self.generator, flip=self.flip))
            loss = (symmetric_cross_entropy(logits, teacher_logits)
                    + symmetric_cross_entropy(view_logits, teacher_logits)).mean() / 2
            if self.lambda_contrast:
                loss = loss + self.lambda_contrast * self._contrast(features, view_features)
            if self.lambda_source:
                source_images, labels = self._source_batch(len(images))
                loss = loss + self.lambda_source * F.cross_entropy(self.student(source_images),
                                                                   labels)
            self._step(loss)
        return (logits + teacher_logits).detach()

    def _step(self, loss: Tensor) -> None:
        """Update the student and the projector, then the teacher."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        ema_update(self.teacher, self.student, self.momentum)

    def _contrast(self, features: Tensor, view_features: Tensor) -> Tensor:
        """Contrastive loss between features [B,D], those of the views and the prototypes."""
        with torch.no_grad():
            cosines = F.normalize(features, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
            nearest_prototypes = self.prototypes[cosines.argmax(-1)]
        projected = self.projector(torch.stack([nearest_prototypes, features, view_features], 1))
        return contrastive_loss(projected, self.temperature)

    def _source_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """`size` randomly sampled source images and their labels."""
        assert self.source is not None
        return self.source.batch(torch.randint(len(self.source), (size,),
                                               generator=self.generator))

    def _set_up(self, warm_up_steps: int) -> dict[str, Tensor]:
        """Compute prototypes, projector and warm-up; return the state for `reset()` by name."""
        start: dict[str, Tensor] = {}
        if self.lambda_contrast:
            start["prototypes"] = self._class_means()
            self._sample_projector()
        self._warm_up(warm_up_steps)
        start["lr"] = torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)
        start["generator"] = self.generator.get_state()
        start |= {f"weights {name}": value for name, value in self.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            start |= {f"optimizer {index} {key}": value for key, value in state.items()}
        return {name: value.clone() for name, value in start.items()}

    @torch.no_grad()
    def _class_means(self) -> Tensor:
        """The mean feature of each class with source images, [classes,D]."""
        assert self.source is not None
        order = torch.randperm(len(self.source), generator=self.generator)[:MAX_PROTOTYPE_IMAGES]
        sums = counts = torch.zeros(())
        # Batches of equal size: a last batch of one image would have no batch statistics.
        for part in order.tensor_split(math.ceil(len(order) / self.warm_up_batch_size)):
            images, labels = self.source.batch(part)
            logits, features = logits_and_features(self.student, images)
            members = F.one_hot(labels, logits.shape[1]).to(features)
            sums, counts = sums + members.T @ features, counts + members.sum(0)
        return (sums / counts[:, None])[counts > 0]

    @torch.no_grad()
    def _sample_projector(self) -> None:
        """Initialise the projector as torch does, but with the method's own generator."""
        for layer in self.projector:
            if not isinstance(layer, nn.Linear):
                continue
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                sampled = torch.empty(parameter.shape).uniform_(-bound, bound,
                                                                generator=self.generator)
                parameter.copy_(sampled)

    def _warm_up(self, steps: int) -> None:
        """Train the student to agree with its teacher on source images."""
        for step in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * (step + 1) / steps
            images, _ = self._source_batch(self.warm_up_batch_size)
            with torch.no_grad():
                teacher_logits = self.teacher(images)
            with torch.enable_grad():
                self._step(symmetric_cross_entropy(self.student(images), teacher_logits).mean())


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `kind`, by the rest of their names."""
    return {name.removeprefix(f"{kind} "): value for name, value in tensors.items()
            if name.startswith(f"{kind} ")}


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer of a model; UserError if there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError("rmt: the classifier has no linear layer, so no penultimate features")
    return layers[-1]


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B,K] and penultimate features [B,D], the input of the last linear layer.

    Raises:
        UserError: for a model without a linear layer.
    """
    seen: list[Tensor] = []
    hook = last_linear(model).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        hook.remove()
    return logits, seen[-1]


def contrastive_loss(features: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020) of features [n,V,D], a scalar.

    Each of the n·V features is an anchor. Its positives are the V - 1 other features of the same
    image, its negatives all features of other images; similarity is the cosine.
    """
    num_images, num_views, _ = features.shape
    flat = F.normalize(features, dim=-1).flatten(0, 1)
    image = torch.arange(num_images, device=flat.device).repeat_interleave(num_views)
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    positive = (image[:, None] == image) & ~itself
    similarity = flat @ flat.T / temperature
    others = similarity.masked_fill(itself, -math.inf).logsumexp(1, keepdim=True)
    return (others - similarity)[positive].mean()
