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
from tta_apm.toolbox.precision import FULL, computing_in, resolve
from tta_apm.toolbox.views import crop_views

# Hidden widths and pooling of Table 6, and of the single-token code, which has the 25 M parameters
# that Table 4 lists.
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

    For each image alone: initialise the student with the same random weights; compute the frozen
    teacher's image feature once; fit the student's pooled feature to it; classify the student's
    feature with the teacher's frozen head. The prediction is made after the last update. No state
    is carried from one image to the next, and images adapted in one batch do not influence one
    another.

    The teacher is a CLIP, as in the paper, with its text features as the head; or any classifier,
    with its last linear layer (bias included) as the head and that layer's input as the feature.

    The authors' public loop differs: it keeps Adam's moments from image to image, trains on eight
    copies of the image, runs the teacher at every step, uses one prompt and predicts before the
    last update. None of that is done here.

    Args:
        backbone: the teacher, a CLIP or a classifier.
        preset: "paper" (Table 6) or "slim" (the authors' single-token code).
        hidden: widths of the MLP's hidden layers. None: those of the preset.
        pooling: "mean" or "attention". None: that of the preset.
        image_size: side in pixels to which images are resized for the student.
        patch: kernel size and stride of the convolution, in pixels; there are
            (image_size / patch)² columns.
        kernels: number of convolution kernels.
        code: size of the positional code, a multiple of 4.
        columns: number of columns to use, sampled with the seed; 0 uses all.
        trigger: source of the trigger column: the student's convolution ("conv"), or the mean of
            the patch tokens of one of the teacher's layers ("vit", T_vit of Table 5b). The paper
            says only that T_vit holds a routed representation of a ViT.
        trigger_layer: index of the teacher's layer for trigger "vit"; negative indices count from
            the end.
        local_patch: also give each column the kernels' outputs at its own patch (I_xy, Table 5b).
        cls_weight: weight of L_cls, the error of the pooled feature against the teacher's feature
            of the image.
        grid_weight: weight of L_grid, the error of each column's feature against the teacher's
            feature at its location in the joint space (Table 5b). The teacher's grid is resampled
            if its size differs. A classifier's grid is the activations that it pools into its
            feature.
        rgb_weight: weight of L_rgb, the error of each column's colour, decoded by an RGB head,
            against the mean colour of its patch in [0,1] (Table 5b).
        augmentation: input of the student during fitting: the image itself ("none", Table 7), a
            new random crop at each step ("crop"), or such a crop mirrored with probability 1/2
            ("crop_flip"). The paper does not say which augmentation its trial used (Table 5b).
        steps: updates of Adam per image (Table 7).
        lr: learning rate of Adam.
        target: fit the teacher's feature as it is ("raw", as in the authors' code; the paper does
            not say) or scaled to length one ("unit").
        similarity: how a classifier's head is applied to the student's feature: after scaling it
            to the length of the teacher's feature ("cosine"), so that only its direction counts,
            as with a CLIP; or as it is ("own"). An unscaled feature is too short after few
            updates: on digits_c with the packaged ResNet (15 x 40 images, 20 steps) 75 % of the
            predictions agreed with the teacher's, with "cosine" 93 %. For a CLIP the two options
            are the same.
        feature_layer: name of the classifier's module whose output [B,D] the student fits; the
            network behind it is the head. "": fit the input of the last linear layer.
        precision: dtype of the student's matrix products: "float32", or "bfloat16" with weights,
            moments and losses in float32; "auto" is bfloat16 on CUDA GPUs of compute capability
            8.0 or higher, float32 elsewhere. The teacher always runs in float32: in bfloat16 its
            features changed 8 predictions of 1,000.
        sparse: whether to skip the units that have no effect for an image (sparse_mlp.py). It
            changes rounding and time only, and has an effect on CPUs in float32 only.
        seed: of the student's weights, the sampled columns and the augmentation.

    After each forward, `details` holds, per image, the teacher's prediction and the cosine between
    the student's and the teacher's features.

    Raises:
        UserError: for a value out of its range, options that exclude one another, or a backbone
            without what they need.
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
        # Raises for a teacher without a grid now, before the first image.
        self.teacher = teacher_of(backbone, feature_layer=feature_layer, wants_grid=grid_weight > 0,
                                  trigger_layer=trigger_layer if trigger == "vit" else None)
        if target == "unit" and similarity == "own" and self.teacher.reads_length:
            raise UserError("apm: with target unit the student does not learn the length of the "
                            "feature, on which a classifier's logits depend: use similarity "
                            "cosine with it")
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
            given_trigger_dim=self.teacher.trigger_dim), seed)
        student = student.to(backbone.mean)
        self.student = FastStudent(
            student, _sample_columns(student, columns, seed),
            column_dtype=None if self.precision == FULL else torch.bfloat16,
            sparse=sparse and self.precision == FULL and backbone.mean.device.type == "cpu")
        self.chunk = chunk_size(self._bytes_per_episode(), backbone.mean.device)
        self.mean, self.std = (backbone.mean.new_tensor(values).view(1, 3, 1, 1)
                               for values in (MEAN, STD))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1].

        With a CLIP they are logit_scale · cos(f_avg, text features).
        """
        teacher = self.teacher.encode(images)
        features = torch.cat([self._adapt(images[part], teacher.select(part))
                              for part in chunks(len(images), self.chunk)])
        self.details = {
            "teacher_prediction": self.teacher.classify(teacher.features).argmax(-1),
            "cosine": F.cosine_similarity(features, teacher.features),
        }
        if self.similarity == "cosine" and self.teacher.reads_length:
            features = at_length_of(features, teacher.features)
        return self.teacher.classify(features)

    def reset(self) -> None:
        """Do nothing: every image starts from the same weights and an empty optimiser."""

    def _adapt(self, images: Tensor, teacher: TeacherOutputs) -> Tensor:
        """Fit one student per image to the teacher's outputs; return their features f_avg [B,D]."""
        resized = self._resize(images)
        patches = self.student.patches(self._normalise(resized))
        inputs = repeat(patches) if self.augmentation == "none" else self._crops(images)
        targets = self._targets(resized, teacher)
        weights = adapt(
            stack(self.student.initial, len(images)),
            lambda stacked: self.losses(self._outputs(
                stacked, next(inputs), teacher.trigger, features=self.losses.grid > 0,
                colours=self.losses.rgb > 0), targets),
            steps=self.steps,
            optimizer=self.make_optimizer)
        return self._outputs(weights, patches, teacher.trigger).pooled.to(images.dtype)

    def _outputs(self, weights: Parameters, patches: Tensor, trigger: Tensor | None,
                 **wanted: bool) -> StudentOutputs:
        """FastStudent.outputs, unaffected by an autocast of the caller's."""
        with computing_in(FULL, patches.device):
            return self.student.outputs(weights, patches, trigger, **wanted)

    def _targets(self, images: Tensor, teacher: TeacherOutputs) -> Targets:
        """The targets of the losses, for images of the student's size in [0,1]."""
        grid = colours = None
        if self.losses.grid and teacher.grid is not None:
            grid = self._scaled(grid_targets(teacher.grid, self.student.grid))
            grid = self.student.select_columns(grid)
        if self.losses.rgb:
            colours = self.student.select_columns(colour_targets(images, self.student.patch))
        return Targets(self._scaled(teacher.features), grid, colours)

    def _scaled(self, features: Tensor) -> Tensor:
        """Features [...,D], scaled to length one for target "unit"."""
        return F.normalize(features, dim=-1) if self.target == "unit" else features

    def _crops(self, images: Tensor) -> Iterator[Tensor]:
        """Yield, at each step, the patches of a new random crop of each image, without end."""
        generators = image_generators(images, self.seed)
        while True:
            crops = crop_views(images, 1, generators, size=self.image_size,
                               flip=self.augmentation == "crop_flip")[:, 0]
            yield self.student.patches(self._normalise(crops))

    def make_optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """A new Adam for the stacked weights of a chunk of images."""
        return adam(leaves, self.lr)

    def _resize(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if images.shape[-2:] == size:
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _bytes_per_episode(self) -> int:
        """Memory of one image's student: weights, gradients, Adam's two moments, and the
        activations with their gradients.

        In bfloat16, half-size copies of the weights and of the gradients come on top.
        """
        copies = 4 if self.precision == "float32" else 5
        weights = sum(value.numel() for value in self.student.initial.values())
        layers = ("mlp", "projection", "rgb") if self.losses.per_column else ("mlp",)
        activations = self.student.num_columns * sum(
            value.shape[0] for name, value in self.student.initial.items()
            if name.startswith(layers) and name.endswith("bias"))
        return (copies * weights + 2 * activations) * self.backbone.mean.element_size()


def _sample_columns(student: Student, columns: int, seed: int) -> Tensor | None:
    """Sorted indices of `columns` randomly sampled columns; None if all are used."""
    if columns in (0, student.grid**2):
        return None
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(student.grid**2, generator=generator)[:columns]
    return indices.sort().values.to(student.code.device)


def _check_sizes(hidden: Sequence[int], image_size: int, patch: int, kernels: int, code: int,
                 columns: int, steps: int, feature_dim: int) -> None:
    """Raise UserError for sizes with which no student can be built."""
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
    """Raise UserError for loss weights (cls, grid, rgb) that do not fit the other options."""
    cls, *column_weights = weights
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UserError(f"apm: cls_weight, grid_weight and rgb_weight {list(weights)} must be at "
                        "least 0, and one of them positive")
    if not cls and not column_weights[0]:
        raise UserError("apm: L_rgb alone does not train the features that are classified: set "
                        "cls_weight or grid_weight too")
    if not cls and pooling == "attention":
        raise UserError("apm: without L_cls nothing trains attention pooling: use pooling mean")
    if augmentation != "none" and (any(column_weights) or trigger != "conv"):
        raise UserError(f"apm: augmentation {augmentation} changes the location that a column "
                        "sees: it needs trigger conv, grid_weight 0 and rgb_weight 0")
