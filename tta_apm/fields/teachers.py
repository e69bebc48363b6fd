"""Teachers: frozen networks that return an image feature and a grid of features (Section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tta_apm.apm.losses import grid_targets
from tta_apm.backbones.inputs import InputKeys, InputSpec
from tta_apm.errors import UserError, nearest
from tta_apm.fields.config import NO_TEACHER, PretrainConfig

RANDOM = "random"


@dataclass(frozen=True)
class Teacher:
    """A frozen network.

    Attributes:
        weights: name and hash of its weights, for the record.
        feature_dim: D.
        encode: maps images [B,3,S,S] in [0,1], of the config's size, to image features [B,D] and
            patch features [B,h,w,D] of the last layer.
    """

    weights: str
    feature_dim: int
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def targets(self, images: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """Image features [B,D], and features [B,grid²,D] at the locations of the columns.

        Args:
            images: [B,3,S,S] in [0,1].
            grid: columns along a side.
        """
        features, patches = self.encode(images)
        return features, grid_targets(patches, grid)


def load_teacher(cfg: PretrainConfig, device: torch.device) -> Teacher | None:
    """The teacher of a config, None for TEACHER none.

    Raises:
        UserError: if the model is unknown, or its weights cannot be found, downloaded or loaded.
    """
    if cfg.teacher == NO_TEACHER:
        return None
    family, _, name = cfg.teacher.partition("/")
    if family not in FAMILIES or not name:
        raise UserError(f"TEACHER {cfg.teacher!r} must be {NO_TEACHER} or one of "
                        f"{', '.join(f'{known}/NAME' for known in FAMILIES)}")
    try:
        return FAMILIES[family](name, cfg, device)
    except UserError as error:
        raise UserError(f"TEACHER {cfg.teacher}: {error}") from error


def feature_dim(cfg: PretrainConfig, teacher: Teacher | None) -> int:
    """D of a config's student: that of its teacher, or its last hidden width without a teacher."""
    return teacher.feature_dim if teacher else cfg.hidden[-1]


def _timm(name: str, cfg: PretrainConfig, device: torch.device) -> Teacher:
    """A ViT of timm, with its position embedding resampled to the config's image size."""
    net, label, spec = _timm_net(name, cfg)
    if not hasattr(net, "num_prefix_tokens") or not hasattr(net, "patch_embed"):
        raise UserError("it is not a ViT of timm: it has no grid of tokens")
    net = net.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1)
                 for values in (spec.mean, spec.std))

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = net.forward_features((images - mean) / std)
        # CLS and registers come before the patches.
        patches = tokens[:, net.num_prefix_tokens:]
        return (net.forward_head(tokens, pre_logits=True),
                patches.unflatten(1, net.patch_embed.grid_size))
    return Teacher(label, net.num_features, encode)


def _timm_net(name: str, cfg: PretrainConfig) -> tuple[Any, str, InputSpec]:
    """A network of timm, the name and hash of its weights, and its input specification."""
    import timm

    from tta_apm.backbones.from_timm import timm_inputs, timm_pretrained
    from tta_apm.backbones.weights import files
    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in known:
        raise UserError(f"timm has no such model: {nearest(name, known)}")
    try:
        if cfg.weights == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(cfg.seed)
                net = timm.create_model(name, img_size=cfg.image_size)
            return net, f"random, seed {cfg.seed}", _input_spec(net, cfg)
        config = timm.models.get_pretrained_cfg(name)
        file = files.find(cfg.weights)
        if cfg.weights and file is None:
            raise UserError(f"WEIGHTS: file not found: {cfg.weights!r}; or give {RANDOM!r}")
        if file is None and not config.hf_hub_id:
            raise UserError(f"timm has no weights for it: set WEIGHTS to a file, or to {RANDOM}")
        net, label = timm_pretrained(name, file, img_size=cfg.image_size)
    except TypeError as error:  # only networks with a position embedding have an image size
        raise UserError("it is not a ViT of timm: it takes no img_size") from error
    if file is not None:
        return net, label, timm_inputs(name, file, InputKeys(cfg.image_size), section="")
    return net, label, _input_spec(net, cfg)


def _input_spec(net: Any, cfg: PretrainConfig) -> InputSpec:
    """The mean and std that timm states for a network; the config sets the size."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(net)
    return InputSpec(cfg.image_size, tuple(data["mean"]), tuple(data["std"]), "timm")


def _clip(name: str, cfg: PretrainConfig, device: torch.device) -> Teacher:
    """The image tower of a CLIP at its own image size."""
    import open_clip

    from tta_apm.backbones.clip import load_clip
    from tta_apm.backbones.grids import encode

    clip = load_clip(name, cfg.weights, class_names=(), templates=(), device=device)
    width = open_clip.get_model_config(name)["embed_dim"]

    def features_and_grid(images: Tensor) -> tuple[Tensor, Tensor]:
        encoded = encode(clip.model.visual, clip.prepare(images))
        return encoded.features, encoded.grid
    return Teacher(clip.weights, width, features_and_grid)


# The number of outputs of a library's network; only so that its weights fit.
IMAGENET_CLASSES = 1000


def _classifier(name: str, cfg: PretrainConfig, device: torch.device) -> Teacher:
    """A classifier, named as in a sweep's CLASSIFIER.MODEL: timm/NAME or torchvision/NAME (with
    1,000 outputs), or FILE.py:FUNCTION, whose network takes images in [0,1].

    Its grid are the activations whose mean is the input of the last linear layer.
    """
    from tta_apm.apm.teacher import ClassifierTeacher
    from tta_apm.backbones import classifiers
    from tta_apm.backbones.build import Task

    family, _ = classifiers.split(name)
    if cfg.weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            net = classifiers.untrained(name, Task(("",) * IMAGENET_CLASSES), device)
        net.weights = f"random, seed {cfg.seed}"
    else:
        keys = InputKeys(0, (0.0,) * 3, (1.0,) * 3) if family == classifiers.OWN else InputKeys()
        net = classifiers.load_classifier(name, cfg.weights, num_classes=IMAGENET_CLASSES,
                                          device=device, keys=keys)
    asked = ClassifierTeacher(net, layer="", wants_grid=True)

    def features_and_grid(images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = asked.encode(images)
        assert outputs.grid is not None  # it was asked for
        return outputs.features, outputs.grid
    return Teacher(net.weights, asked.feature_dim, features_and_grid)


FAMILIES: dict[str, Callable[[str, PretrainConfig, torch.device], Teacher]] = {
    "timm": _timm, "clip": _clip, "classifier": _classifier}
