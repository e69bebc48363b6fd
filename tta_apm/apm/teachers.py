"""Teachers: frozen ViTs that say of an image one feature and a grid of them (Section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tta_apm.apm.losses import grid_targets
from tta_apm.apm.recipe import NO_TEACHER, Recipe
from tta_apm.errors import UserError, nearest

RANDOM = "random"


@dataclass(frozen=True)
class Teacher:
    """A frozen network.

    Attributes:
        weights: what they are and their hash.
        feature_dim: D.
        encode: images [B,3,S,S] in [0,1], of the recipe's size -> image features [B,D] and patch
            features [B,h,w,D] of the last layer.
    """

    weights: str
    feature_dim: int
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def targets(self, images: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """Image features [B,D], and features [B,grid²,D] at the places of a student's columns."""
        features, patches = self.encode(images)
        return features, grid_targets(patches, grid)


def load_teacher(recipe: Recipe, device: torch.device) -> Teacher | None:
    """The teacher of a recipe, None for TEACHER none.

    Raises:
        UserError: for an unknown model, or weights that are not here and cannot be downloaded or
            do not fit.
    """
    if recipe.teacher == NO_TEACHER:
        return None
    family, _, name = recipe.teacher.partition("/")
    if family not in FAMILIES or not name:
        raise UserError(f"TEACHER {recipe.teacher!r} must be {NO_TEACHER} or one of "
                        f"{', '.join(f'{known}/NAME' for known in FAMILIES)}")
    try:
        return FAMILIES[family](name, recipe, device)
    except UserError as error:
        raise UserError(f"TEACHER {recipe.teacher}: {error}") from error


def feature_dim(recipe: Recipe, teacher: Teacher | None) -> int:
    """D of a recipe's student: its teacher's, its last hidden width without one."""
    return teacher.feature_dim if teacher else recipe.hidden[-1]


def _timm(name: str, recipe: Recipe, device: torch.device) -> Teacher:
    """A ViT of timm at the recipe's image size, its table of positions resampled to that."""
    from timm.data import resolve_model_data_config

    net, label = _timm_net(name, recipe)
    if not hasattr(net, "num_prefix_tokens") or not hasattr(net, "patch_embed"):
        raise UserError("it is no ViT of timm: it has no grid of tokens")
    net = net.to(device).eval().requires_grad_(False)
    data = resolve_model_data_config(net)
    mean, std = (torch.tensor(data[key], device=device).view(3, 1, 1) for key in ("mean", "std"))

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = net.forward_features((images - mean) / std)
        # CLS and registers stand before the patches.
        patches = tokens[:, net.num_prefix_tokens:]
        return (net.forward_head(tokens, pre_logits=True),
                patches.unflatten(1, net.patch_embed.grid_size))
    return Teacher(label, net.num_features, encode)


def _timm_net(name: str, recipe: Recipe) -> tuple[Any, str]:
    """A network of timm, and what its weights are."""
    import timm

    from tta_apm.backbones import files
    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in known:
        raise UserError(f"timm has no such model: {nearest(name, known)}")

    def make(**options: Any) -> Any:
        try:
            return timm.create_model(name, img_size=recipe.image_size, **options)
        except TypeError as error:  # only networks with a table of positions have an image size
            raise UserError("it is no ViT of timm: it takes no img_size") from error

    if recipe.weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return make(), f"random, seed {recipe.seed}"
    config = timm.models.get_pretrained_cfg(name)
    file = files.find(recipe.weights)
    if recipe.weights and file is None:
        raise UserError(f"WEIGHTS: there is no file {recipe.weights!r}; {RANDOM} draws them")
    if file is None and not config.hf_hub_id:
        raise UserError(f"timm has no weights for it: set WEIGHTS to a file, or to {RANDOM}")
    file = file or files.from_hub(config.hf_hub_id,
                                  [config.hf_hub_filename or "model.safetensors"])
    try:
        with files.only_weights():
            net = make(pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    except UserError:
        raise
    except files.BAD_FILE as error:
        raise UserError(f"{file} holds no weights of it: {files.first_line(error)}") from error
    return net, files.describe(file.name, file)


def _clip(name: str, recipe: Recipe, device: torch.device) -> Teacher:
    """The image tower of a CLIP at its own image size."""
    from tta_apm.backbones.clip import load_clip
    from tta_apm.backbones.grids import encode
    # No class is asked for: a ClipBackbone wants one.
    clip = load_clip(name, recipe.weights, class_names=("thing",), templates=("{}",),
                     device=device)

    def features_and_grid(images: Tensor) -> tuple[Tensor, Tensor]:
        encoded = encode(clip.model.visual, clip.prepare(images))
        return encoded.features, encoded.grid
    return Teacher(clip.weights, clip.text_features.shape[1], features_and_grid)


FAMILIES: dict[str, Callable[[str, Recipe, torch.device], Teacher]] = {
    "timm": _timm, "clip": _clip}
