"""APM as a Method: test-time training of a fresh student on each image (Section 3.6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.fast import FastStudent, StudentOutputs
from tta_apm.apm.losses import Losses, Targets, colour_targets, grid_targets
from tta_apm.apm.student import HEADS, MEAN, POOLINGS, STD, Student, sample_weights
from tta_apm.apm.teacher import TeacherOutputs, at_length_of, teacher_of
from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.errors import UserError, at_least, check_widths, choose, multiple_of
from tta_apm.method import Method
from tta_apm.toolbox.episodes import (
    Parameters, adam, adapt, chunk_size, chunks, image_generators, stack)
from tta_apm.toolbox.precision import FULL, products, resolve
from tta_apm.toolbox.views import crop_views

# hidden widths and pooling: Table 6, and the single-token code that Table 4 counts as 25 M.
PRESETS: dict[str, tuple[tuple[int, ...], str]] = {
    "paper": ((4096, 4096, 4096, 2048, 1024), "mean"),
    "slim": ((4096, 2048, 1024), "attention"),
}
TARGETS = ("raw", "unit")
SIMILARITIES = ("cosine", "own")
TRIGGERS = ("conv", "vit")
AUGMENTATIONS = ("none", "crop", "crop_flip")


class Apm(Method):
    """Asynchronous Perception Machine (Modi and Rawat, NeurIPS 2024, Algorithm 2).

    For each image alone: start the student from the same random weights; ask the frozen teacher
    once for its image feature; fit the student's pooled feature to it; classify the student's
    feature by the teacher's frozen head. Predicts after the last update. Nothing survives from one
    image to the next, and images adapted together do not see one another.

    The teacher is a CLIP, as in the paper, whose head are its text features; or any classifier: the
    feature is what its last linear layer is given, and that layer, with its bias, is the head.

    The authors' public loop keeps Adam's moments from image to image, trains on eight copies, asks
    the teacher at every step, uses one prompt and predicts before the last update; none of that is
    done here.

    Args:
        backbone: the teacher, a CLIP or a classifier.
        preset: "paper" (Table 6) or "slim" (the authors' single-token code).
        hidden: widths of the MLP; None takes the preset's.
        pooling: "mean" or "attention"; None takes the preset's.
        image_size: side in pixels that images are resized to for the student.
        patch: kernel and stride of the convolution; there are (image_size / patch)² columns.
        kernels: convolution kernels.
        code: size of the positional code, a multiple of 4.
        columns: how many columns to use, sampled by the seed; 0 uses all.
        trigger: the trigger column is the convolution's ("conv") or the teacher's ("vit", T_vit of
            Table 5b): the mean of a layer's patch tokens. The paper says no more of T_vit
            than that the column holds a routed representation of a ViT.
        trigger_layer: of the teacher, for trigger "vit"; negative counts from the end.
        local_patch: also give each column the kernels' values for its own patch (I_xy, Table 5b).
        cls_weight: of L_cls, the pooled feature against the teacher's feature of the image.
        grid_weight: of L_grid, each column against the teacher's feature of its location in the
            joint space (Table 5b); the teacher's grid is resampled where its size is another. A
            classifier's grid are the activations that its feature is pooled from.
        rgb_weight: of L_rgb, each column's colour, by an RGB head, against the mean colour of its
            patch in [0,1] (Table 5b).
        augmentation: what the student is shown of the image while it is fitted: the image itself
            ("none", Table 7), a new random crop at each step ("crop"), mirrored half the time
            ("crop_flip"). The paper does not say which augmentation its trial used (Table 5b).
        steps: updates of Adam per image (Table 7).
        lr: learning rate of Adam.
        target: fit the teacher's feature as it is ("raw") or scaled to length one ("unit"); the
            paper is silent, its code takes it raw.
        similarity: how the head of a classifier reads the student's feature: brought to the length
            of the teacher's first ("cosine"), so that the direction alone is the student's, as it
            is with a CLIP; or as it is ("own"), by the head's own product. A feature that is not
            fitted to the end is too short for that: on digits_c with the packaged ResNet (15 x 40
            images, 20 steps) 75 % of the answers were the teacher's, by cosine 93 %. For a CLIP
            the two are one.
        feature_layer: of a classifier, the module, by name, whose output [B,D] the student fits;
            the network behind it is the head. "" is the input of the last linear layer.
        precision: of the student's matrix products: "float32", or "bfloat16" with weights, moments
            and losses in float32; "auto" is bfloat16 on CUDA GPUs from compute capability 8.0 on,
            float32 elsewhere. The teacher stays in float32: its features in bfloat16 changed 8
            predictions of 1,000.
        sparse: on a CPU in float32, leave out the units that change nothing for an image
            (sparse_mlp.py). It changes rounding and time, nothing else; elsewhere it says nothing.
        seed: of the student's weights and of augmentation.

    After a forward, `details` holds the teacher's prediction and the cosine of the student's and
    the teacher's feature, per image.
    """

    needs = "clip"
    also_takes = "classifier"
    scope = "image"

    def __init__(self, backbone: ClipBackbone | Classifier, *, preset: str = "paper",
                 hidden: Sequence[int] | None = None, pooling: str | None = None,
                 image_size: int = 448, patch: int = 14, kernels: int = 1, code: int = 1024,
                 columns: int = 0, trigger: str = "conv", trigger_layer: int = -1,
                 local_patch: bool = False, cls_weight: float = 1.0, grid_weight: float = 0.0,
                 rgb_weight: float = 0.0, augmentation: str = "none", steps: int = 20,
                 lr: float = 1e-4, target: str = "raw", similarity: str = "cosine",
                 feature_layer: str = "", precision: str = "auto", sparse: bool = True,
                 seed: int = 42) -> None:
        super().__init__()
        for key, value, known in (("preset", preset, PRESETS), ("target", target, TARGETS),
                                  ("similarity", similarity, SIMILARITIES),
                                  ("trigger", trigger, TRIGGERS),
                                  ("augmentation", augmentation, AUGMENTATIONS)):
            choose("apm", key, value, known)
        preset_hidden, preset_pooling = PRESETS[preset]
        hidden = preset_hidden if hidden is None else tuple(hidden)
        pooling = preset_pooling if pooling is None else pooling
        choose("apm", "pooling", pooling, POOLINGS)
        at_least(0, "apm", lr=lr)
        _check_losses((cls_weight, grid_weight, rgb_weight), pooling, trigger, augmentation)
        self.backbone = backbone
        # A teacher without a grid is refused here, before the first image.
        self.teacher = teacher_of(backbone, feature_layer=feature_layer, wants_grid=grid_weight > 0,
                                  trigger_layer=trigger_layer if trigger == "vit" else None)
        if target == "unit" and similarity == "own" and self.teacher.reads_length:
            raise UserError("apm: target unit leaves the length of a feature out, which the head "
                            "of a classifier reads: use similarity cosine with it")
        feature_dim = self.teacher.feature_dim
        _check_sizes(hidden, image_size, patch, kernels, code, columns, steps, feature_dim)
        if pooling == "attention" and feature_dim % HEADS:
            raise UserError(f"apm: attention pooling has {HEADS} heads, which do not divide the "
                            f"teacher's {feature_dim} features; use pooling mean")
        self.image_size = image_size
        self.steps = steps
        self.lr = lr
        self.target = target
        self.similarity = similarity
        self.augmentation = augmentation
        self.precision = resolve(precision, "bfloat16", backbone.mean.device, "apm")
        self.resolved = {"precision": self.precision}
        self.seed = seed
        self.losses = Losses(cls_weight, grid_weight, rgb_weight)
        student = sample_weights(Student(
            grid=image_size // patch, patch=patch, kernels=kernels, code=code, hidden=hidden,
            feature_dim=feature_dim, pooling=pooling, rgb=rgb_weight > 0, local_patch=local_patch,
            tokens=self.teacher.token_dim), seed)
        student = student.to(backbone.mean)
        self.student = FastStudent(
            student, _sample_columns(student, columns, seed),
            low=None if self.precision == FULL else torch.bfloat16,
            sparse=sparse and self.precision == FULL and backbone.mean.device.type == "cpu")
        self.chunk = chunk_size(self._bytes_per_episode(), backbone.mean.device)
        self.mean, self.std = (backbone.mean.new_tensor(values).view(1, 3, 1, 1)
                               for values in (MEAN, STD))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]; of a CLIP logit_scale · cos(f_avg, text
        features)."""
        teacher = self.teacher.ask(images)
        features = torch.cat([self._adapt(images[part], teacher.of(part))
                              for part in chunks(len(images), self.chunk)])
        self.details = {
            "teacher_prediction": self.teacher.classify(teacher.features).argmax(-1),
            "cosine": F.cosine_similarity(features, teacher.features),
        }
        if self.similarity == "cosine" and self.teacher.reads_length:
            features = at_length_of(features, teacher.features)
        return self.teacher.classify(features)

    def reset(self) -> None:
        """Nothing to do: every image starts from the same weights and an empty optimiser."""

    def _adapt(self, images: Tensor, teacher: TeacherOutputs) -> Tensor:
        """Features [B,D] of students fitted to the teacher's outputs, one per image."""
        resized = self._resize(images)
        patches = self.student.patches(self._normalise(resized))
        shown = repeat(patches) if self.augmentation == "none" else self._crops(images)
        targets = self._targets(resized, teacher)
        weights = adapt(
            stack(self.student.initial, len(images)),
            lambda stacked: self.losses(self._outputs(
                stacked, next(shown), teacher.tokens, features=self.losses.grid > 0,
                colours=self.losses.rgb > 0), targets),
            steps=self.steps,
            optimizer=self.make_optimizer)
        return self._outputs(weights, patches, teacher.tokens).pooled.to(images.dtype)

    def _outputs(self, weights: Parameters, patches: Tensor, tokens: Tensor | None,
                 **wanted: bool) -> StudentOutputs:
        """See FastStudent.outputs."""
        with products(FULL, patches.device):  # whatever the caller has set
            return self.student.outputs(weights, patches, tokens, **wanted)

    def _targets(self, images: Tensor, teacher: TeacherOutputs) -> Targets:
        """The targets of the losses, for images of the student's size in [0,1]."""
        grid = colours = None
        if self.losses.grid and teacher.grid is not None:
            grid = self.student.choose(self._scaled(grid_targets(teacher.grid, self.student.grid)))
        if self.losses.rgb:
            colours = self.student.choose(colour_targets(images, self.student.patch))
        return Targets(self._scaled(teacher.features), grid, colours)

    def _scaled(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if self.target == "unit" else features

    def _crops(self, images: Tensor) -> Iterator[Tensor]:
        """Patches of a new random crop of each image, endlessly."""
        generators = image_generators(images, self.seed)
        while True:
            crops = crop_views(images, 1, generators, size=self.image_size,
                               flip=self.augmentation == "crop_flip")[:, 0]
            yield self.student.patches(self._normalise(crops))

    def make_optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """An empty Adam for the stacked weights of a chunk of images."""
        return adam(leaves, self.lr)

    def _resize(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if images.shape[-2:] == size:
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _bytes_per_episode(self) -> int:
        """Weights, gradients, two moments, and activations with their gradients.

        In bfloat16 weights and gradients have a copy of half their size each.
        """
        copies = 4 if self.precision == "float32" else 5
        weights = sum(value.numel() for value in self.student.initial.values())
        layers = ("mlp", "projection", "rgb") if self.losses.per_column else ("mlp",)
        activations = self.student.num_columns * sum(
            value.shape[0] for name, value in self.student.initial.items()
            if name.startswith(layers) and name.endswith("bias"))
        return (copies * weights + 2 * activations) * self.backbone.mean.element_size()


def _sample_columns(student: Student, columns: int, seed: int) -> Tensor | None:
    """Indices of the columns to use, sorted; None for all."""
    if columns in (0, student.grid**2):
        return None
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(student.grid**2, generator=generator)[:columns]
    return indices.sort().values.to(student.code.device)


def _check_sizes(hidden: Sequence[int], image_size: int, patch: int, kernels: int, code: int,
                 columns: int, steps: int, feature_dim: int) -> None:
    """Raise UserError for sizes that make no student."""
    at_least(1, "apm", patch=patch, kernels=kernels)
    at_least(0, "apm", steps=steps)
    multiple_of(patch, "apm", "patch", image_size=image_size)
    multiple_of(4, "apm", code=code)
    if not hidden or min(hidden) < 1:
        raise UserError(f"apm: hidden {list(hidden)} must be positive widths, at least one")
    num_columns = (image_size // patch) ** 2
    check_widths("apm: a student", [kernels * num_columns + code, *hidden, feature_dim])
    if not 0 <= columns <= num_columns:
        raise UserError(f"apm: columns {columns}: there are {num_columns} columns, and 0 means all")


def _check_losses(weights: Sequence[float], pooling: str, trigger: str, augmentation: str) -> None:
    """Raise UserError for weights of L_cls, L_grid and L_rgb that do not fit the other options."""
    cls, *of_columns = weights
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UserError(f"apm: cls_weight, grid_weight and rgb_weight {list(weights)} must be at "
                        "least 0, and one of them more")
    if not cls and not of_columns[0]:
        raise UserError("apm: L_rgb alone says nothing of the classes: give cls_weight or "
                        "grid_weight too")
    if not cls and pooling == "attention":
        raise UserError("apm: without L_cls nothing trains attention pooling: use pooling mean")
    if augmentation != "none" and (any(of_columns) or trigger != "conv"):
        raise UserError(f"apm: augmentation {augmentation} moves what the columns see: it goes "
                        "with trigger conv, grid_weight 0 and rgb_weight 0")
