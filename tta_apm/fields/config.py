"""PretrainConfig: the keys of a pretraining config, also used for test-time training on one image.

Each field is a key in capitals, e.g. `batch_size` is BATCH_SIZE. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tta_apm.config.values import MAX_INT, check_device, check_seed
from tta_apm.config.written import shortened
from tta_apm.errors import UserError, at_least, check_widths, choose, multiple_of, positive

PRECISIONS = ("auto", "float32", "bfloat16")
NO_TEACHER = "none"
# Keys that may change when a run is resumed: they do not decide the weights after a step.
RUNTIME_KEYS = ("steps", "precision", "device", "num_workers", "save_every", "cache", "output_dir")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The config of Algorithm 1: one student, a folder of images and a frozen teacher."""

    # A folder of images, with all folders below it; "sklearn" is the two photos that scikit-learn
    # ships.
    images: str = "sklearn"
    # Side in pixels of the student's image and of the image of a timm teacher.
    image_size: int = 448
    # Crop random squares whose side is between this fraction of a photo's shorter side and all of
    # it; 0 squeezes the whole photo into a square.
    crop: float = 0.0
    # timm/NAME of a ViT, clip/NAME of open_clip, classifier/MODEL with MODEL as in a sweep's
    # CLASSIFIER.MODEL (a network of your own takes images in [0,1]), or none to train on the loss
    # rgb alone.
    teacher: str = "timm/vit_large_patch14_reg4_dinov2.lvd142m"
    # The teacher's weights: "" for the library's pretrained ones, a tag of open_clip, a file, or
    # "random" (from SEED).
    weights: str = ""
    # Weights of the losses: pooled feature against the teacher's image feature, columns against
    # the teacher's grid, columns against the mean colour of their patch.
    cls_weight: float = 0.0
    grid_weight: float = 1.0
    rgb_weight: float = 1.0
    # The student, see Student; the defaults are those of Table 6.
    patch: int = 14
    kernels: int = 1
    code: int = 1024
    hidden: tuple[int, ...] = (4096, 4096, 4096, 2048, 1024)
    # Adam; BATCH_SIZE is the sum over all processes.
    lr: float = 1e-4
    steps: int = 20000
    batch_size: int = 64
    seed: int = 42
    # Precision of products; auto is bfloat16 on CUDA GPUs that support it, else float32.
    precision: str = "auto"
    device: str = "auto"
    # Processes that read images, for each process that trains.
    num_workers: int = 0
    # Steps between checkpoints.
    save_every: int = 500
    # A folder for the teacher's features of all images, as float16; "" runs the teacher each step.
    cache: str = ""
    output_dir: str = "results/pretrain"

    @property
    def grid(self) -> int:
        """The number of columns along a side of the image."""
        return self.image_size // self.patch

    @property
    def needs_teacher(self) -> bool:
        return self.cls_weight > 0 or self.grid_weight > 0

    def identity(self) -> dict[str, Any]:
        """The keys that decide the weights: a checkpoint is resumed only if they are the same."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name not in RUNTIME_KEYS}

    def check(self) -> None:
        """Raise UserError for a value that is out of range or contradicts another."""
        at_least(0, "", CLS_WEIGHT=self.cls_weight, GRID_WEIGHT=self.grid_weight,
                 RGB_WEIGHT=self.rgb_weight, STEPS=self.steps, NUM_WORKERS=self.num_workers)
        if not (self.needs_teacher or self.rgb_weight > 0):
            raise UserError("CLS_WEIGHT, GRID_WEIGHT and RGB_WEIGHT are all 0: there is no loss")
        if self.teacher == NO_TEACHER and self.needs_teacher:
            raise UserError("TEACHER none leaves the losses cls and grid without a target: set "
                            "CLS_WEIGHT and GRID_WEIGHT to 0, or name a TEACHER")
        at_least(1, "", PATCH=self.patch, KERNELS=self.kernels, BATCH_SIZE=self.batch_size,
                 SAVE_EVERY=self.save_every)
        multiple_of(self.patch, "", "PATCH", IMAGE_SIZE=self.image_size)
        multiple_of(4, "", CODE=self.code)
        if not self.hidden or min(self.hidden) < 1:
            raise UserError(f"HIDDEN {list(self.hidden)}: widths are positive, at least one")
        if not 0 <= self.crop <= 1:
            raise UserError(f"CROP {self.crop}: a fraction of the shorter side, from 0 to 1")
        if self.crop and self.cache:
            raise UserError("CACHE keeps one grid per image, but with CROP each epoch sees another "
                            "part of it: set only one of the two")
        positive("", LR=self.lr)
        check_widths("a student", [self.kernels * self.grid**2 + self.code, *self.hidden])
        check_seed("SEED", self.seed)
        if not self.output_dir:
            raise UserError("OUTPUT_DIR is empty: give a folder, or . for the one you are in")
        check_device("DEVICE", self.device)
        choose("PRECISION", "", self.precision, PRECISIONS)


def keys() -> dict[str, Any]:
    """The keys of a config with their defaults."""
    return {field.name.upper(): list(field.default) if isinstance(field.default, tuple)
            else field.default for field in fields(PretrainConfig)}


def from_config(values: Mapping[str, Any]) -> PretrainConfig:
    """The config with the values of a config file, checked.

    Args:
        values: a value for each of `keys`.

    Raises:
        UserError: as PretrainConfig.check.
    """
    settings: dict[str, Any] = {key.lower(): tuple(value) if isinstance(value, list) else value
                                for key, value in values.items()}
    cfg = PretrainConfig(**settings)
    cfg.check()
    return cfg


def from_plain(values: object, where: str) -> PretrainConfig:
    """The config with values read from JSON, checked.

    Args:
        where: the file of the values, for errors.

    Raises:
        UserError: if a key is missing or unknown, or a value is of another type or out of range.
    """
    known = {field.name: field.default for field in fields(PretrainConfig)}
    if not isinstance(values, Mapping) or values.keys() != known.keys():
        raise UserError(f"{where}: its config must have the keys {', '.join(known)}")
    settings: dict[str, Any] = {}
    for key, default in known.items():
        value = values[key]
        if not _is_like(value, default):
            raise UserError(f"{where}: {key} of its config is {shortened(repr(value))}, which is "
                            f"not of the type of {default!r}")
        settings[key] = tuple(value) if isinstance(value, (list, tuple)) else value
    cfg = PretrainConfig(**settings)
    try:
        cfg.check()
    except UserError as error:
        raise UserError(f"{where}: its config is invalid: {error}") from error
    return cfg


def _is_like(value: object, default: object) -> bool:
    """Whether a value is of the type of its default; an int is accepted for a float."""
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(_is_like(item, 0) for item in value)
    if isinstance(value, int) and abs(value) > MAX_INT:
        return False
    return type(value) is type(default) or (type(default) is float and type(value) is int)
