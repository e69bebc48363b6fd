"""Teachers: frozen ViTs that say of an image one feature and a grid of them (Section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tta_apm.apm.losses import grid_targets
from tta_apm.backbones.inputs import Inputs, Told
from tta_apm.errors import UserError, nearest
from tta_apm.fields.recipe import NO_TEACHER, Recipe

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
    net, label, told = _timm_net(name, recipe)
    if not hasattr(net, "num_prefix_tokens") or not hasattr(net, "patch_embed"):
        raise UserError("it is no ViT of timm: it has no grid of tokens")
    net = net.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1)
                 for values in (told.mean, told.std))

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = net.forward_features((images - mean) / std)
        # CLS and registers stand before the patches.
        patches = tokens[:, net.num_prefix_tokens:]
        return (net.forward_head(tokens, pre_logits=True),
                patches.unflatten(1, net.patch_embed.grid_size))
    return Teacher(label, net.num_features, encode)


def _timm_net(name: str, recipe: Recipe) -> tuple[Any, str, Told]:
    """A network of timm, what its weights are, and what images it takes."""
    import timm

    from tta_apm.backbones.libraries import timm_inputs, timm_pretrained
    from tta_apm.backbones.weights import files
    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in known:
        raise UserError(f"timm has no such model: {nearest(name, known)}")
    try:
        if recipe.weights == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                net = timm.create_model(name, img_size=recipe.image_size)
            return net, f"random, seed {recipe.seed}", _told(net, recipe)
        config = timm.models.get_pretrained_cfg(name)
        file = files.find(recipe.weights)
        if recipe.weights and file is None:
            raise UserError(f"WEIGHTS: there is no file {recipe.weights!r}; {RANDOM} draws them")
        if file is None and not config.hf_hub_id:
            raise UserError(f"timm has no weights for it: set WEIGHTS to a file, or to {RANDOM}")
        net, label = timm_pretrained(name, file, img_size=recipe.image_size)
    except TypeError as error:  # only networks with a table of positions have an image size
        raise UserError("it is no ViT of timm: it takes no img_size") from error
    if file is not None:
        given = Inputs(recipe.image_size)
        return net, label, timm_inputs(name, file, given, section="")
    return net, label, _told(net, recipe)


def _told(net: Any, recipe: Recipe) -> Told:
    """What timm says of a network's images; the recipe sets their size."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(net)
    return Told(recipe.image_size, tuple(data["mean"]), tuple(data["std"]), "timm")


def _clip(name: str, recipe: Recipe, device: torch.device) -> Teacher:
    """The image tower of a CLIP at its own image size."""
    import open_clip

    from tta_apm.backbones.clip import load_clip
    from tta_apm.backbones.grids import encode

    clip = load_clip(name, recipe.weights, class_names=(), templates=(), device=device)
    width = open_clip.get_model_config(name)["embed_dim"]

    def features_and_grid(images: Tensor) -> tuple[Tensor, Tensor]:
        encoded = encode(clip.model.visual, clip.prepare(images))
        return encoded.features, encoded.grid
    return Teacher(clip.weights, width, features_and_grid)


FAMILIES: dict[str, Callable[[str, Recipe, torch.device], Teacher]] = {
    "timm": _timm, "clip": _clip}
