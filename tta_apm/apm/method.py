"""APM as a Method: test-time training of a fresh student on each image (Section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.fast import FastStudent
from tta_apm.apm.student import POOLINGS, Student, draw
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.episodes import adam, adapt, chunk_size, chunks, stack
from tta_apm.errors import UserError, nearest
from tta_apm.method import Method

# hidden widths and pooling: Table 6, and the single-token code that Table 4 counts as 25 M.
PRESETS: dict[str, tuple[tuple[int, ...], str]] = {
    "paper": ((4096, 4096, 4096, 2048, 1024), "mean"),
    "slim": ((4096, 2048, 1024), "attention"),
}
TARGETS = ("raw", "unit")
# Of ImageNet, which the student's input is normalised by (Table 7).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Apm(Method):
    """Asynchronous Perception Machine (Modi and Rawat, NeurIPS 2024, Algorithm 2).

    For each image alone: draw the student anew, the same draw for all; ask the frozen teacher once
    for its image feature; fit the student's pooled feature to it; classify the student's feature
    against the teacher's text features. Predicts after the last update. Nothing survives from one
    image to the next, and images adapted together do not see one another.

    The authors' public loop keeps Adam's moments from image to image, trains on eight copies, asks
    the teacher at every step, uses one prompt and predicts before the last update; none of that is
    done here.

    Args:
        backbone: the teacher.
        preset: "paper" (Table 6) or "slim" (the authors' single-token code).
        hidden: widths of the MLP; None takes the preset's.
        pooling: "mean" or "attention"; None takes the preset's.
        image_size: side in pixels that images are resized to for the student.
        patch: kernel and stride of the convolution; there are (image_size / patch)² columns.
        kernels: convolution kernels.
        code: size of the positional code, a multiple of 4.
        columns: how many columns to use, drawn by the seed; 0 uses all.
        steps: updates of Adam per image (Table 7).
        lr: learning rate of Adam.
        target: fit the teacher's feature as it is ("raw") or scaled to length one ("unit"); the
            paper is silent, its code takes it raw.
        seed: of the draw of the student's weights.

    After a forward, `details` holds the teacher's prediction and the cosine of the student's and
    the teacher's feature, per image.
    """

    needs = "clip"
    scope = "image"

    def __init__(self, backbone: ClipBackbone, *, preset: str = "paper",
                 hidden: Sequence[int] | None = None, pooling: str | None = None,
                 image_size: int = 448, patch: int = 14, kernels: int = 1, code: int = 1024,
                 columns: int = 0, steps: int = 20, lr: float = 1e-4, target: str = "raw",
                 seed: int = 42) -> None:
        super().__init__()
        _check_choice("preset", preset, PRESETS)
        _check_choice("target", target, TARGETS)
        preset_hidden, preset_pooling = PRESETS[preset]
        hidden = preset_hidden if hidden is None else tuple(hidden)
        pooling = preset_pooling if pooling is None else pooling
        _check_choice("pooling", pooling, POOLINGS)
        feature_dim = backbone.text_features.shape[1]
        _check_numbers(hidden, pooling, image_size, patch, kernels, code, columns, steps,
                       feature_dim)
        self.backbone = backbone
        self.image_size = image_size
        self.steps = steps
        self.lr = lr
        self.target = target
        student = draw(Student(grid=image_size // patch, patch=patch, kernels=kernels, code=code,
                               hidden=hidden, feature_dim=feature_dim, pooling=pooling), seed)
        student = student.to(backbone.text_features)
        self.student = FastStudent(student, _draw_columns(student, columns, seed))
        self.chunk = chunk_size(self._bytes_per_episode(), backbone.text_features.device)
        self.mean, self.std = (backbone.text_features.new_tensor(values).view(1, 3, 1, 1)
                               for values in (MEAN, STD))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]: logit_scale · cos(f_avg, text features)."""
        teacher = self.backbone.encode_image(images)
        features = torch.cat([self._adapt(images[part], teacher[part])
                              for part in chunks(len(images), self.chunk)])
        self.details = {
            "teacher_prediction": self.backbone.classify(teacher).argmax(-1),
            "cosine": F.cosine_similarity(features, teacher),
        }
        return self.backbone.classify(features)

    def reset(self) -> None:
        """Nothing to do: every image starts from the same draw and an empty optimiser."""

    def _adapt(self, images: Tensor, teacher: Tensor) -> Tensor:
        """Features [B,D] of students fitted to the teacher's features [B,D], one per image."""
        patches = self.student.patches(self._prepare(images))
        target = F.normalize(teacher, dim=-1) if self.target == "unit" else teacher
        weights = adapt(
            stack(self.student.initial, len(images)),
            lambda stacked: (self.student.pooled(stacked, patches) - target).square().mean(-1),
            steps=self.steps,
            optimizer=lambda leaves: adam(leaves, self.lr))
        return self.student.pooled(weights, patches)

    def _prepare(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return (images - self.mean) / self.std

    def _bytes_per_episode(self) -> int:
        """Weights, gradients, two moments, and activations with their gradients."""
        weights = sum(value.numel() for value in self.student.initial.values())
        columns = self.student.grid**2 if self.student.columns is None else len(
            self.student.columns)
        activations = columns * sum(value.shape[0] for name, value in self.student.initial.items()
                                    if name.startswith("mlp") and name.endswith("bias"))
        return (4 * weights + 2 * activations) * self.backbone.text_features.element_size()


def _draw_columns(student: Student, columns: int, seed: int) -> Tensor | None:
    if columns in (0, student.grid**2):
        return None
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(student.grid**2, generator=generator)[:columns]
    return places.sort().values.to(student.code.device)


def _check_choice(key: str, value: str, known: Sequence[str] | dict) -> None:
    if value not in known:
        raise UserError(f"apm: unknown {key} {value!r}: {nearest(value, known)}")


def _check_numbers(hidden: Sequence[int], pooling: str, image_size: int, patch: int, kernels: int,
                   code: int, columns: int, steps: int, feature_dim: int) -> None:
    if image_size < 1 or patch < 1 or image_size % patch:
        raise UserError(f"apm: image_size {image_size} is no multiple of patch {patch}")
    if code < 4 or code % 4:
        raise UserError(f"apm: code {code} is no positive multiple of 4")
    if kernels < 1 or steps < 0 or not hidden or min(hidden) < 1:
        raise UserError(f"apm: kernels {kernels}, steps {steps} and hidden {list(hidden)} "
                        "must be positive (steps may be 0)")
    if not 0 <= columns <= (image_size // patch) ** 2:
        raise UserError(f"apm: columns {columns}: there are {(image_size // patch) ** 2} columns, "
                        "and 0 means all")
    if pooling == "attention" and feature_dim % 8:
        raise UserError(f"apm: attention pooling has 8 heads, which do not divide the teacher's "
                        f"{feature_dim} features; use pooling mean")
