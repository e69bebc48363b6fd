"""ClipBackbone: a frozen CLIP of open_clip that classifies by prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from torch import Tensor

from tta_apm.backbones import small_resnets  # noqa: F401  (makes them known to timm)
from tta_apm.backbones import files, grids, text_cache
from tta_apm.backbones.backbone import Backbone, check_model
from tta_apm.errors import UserError, nearest

# Models of ours that open_clip then knows like its own.
open_clip.add_model_config(files.PACKAGED)

# Prompts that the text tower takes at a time.
CHUNK = 512


class ClipBackbone(Backbone):
    """The two frozen towers of a CLIP and the text features of a list of classes.

    The feature of a class is the mean of the unit features of its prompts, normalised again
    (Radford et al. 2021, section 3.1.4, and the notebook Prompt_Engineering of openai/CLIP).

    Args:
        model: of open_clip.
        tokenizer: of the model; texts -> tokens int64 [N,L].
        class_names: K names.
        templates: each with one `{}` for the name; with several they are an ensemble.
        cache: keep the text features on disk. `weights` must then hold a hash of the weights.
        image_size, mean, std, name, weights: see Backbone.

    Attributes:
        text_features: [K,D], rows of length 1.
        logit_scale: the learned inverse temperature, about 100 for trained models.
    """

    kind = "clip"
    text_features: Tensor

    def __init__(self, model: open_clip.CLIP, tokenizer: Callable[..., Tensor], *,
                 class_names: Sequence[str], templates: Sequence[str], image_size: int,
                 mean: Sequence[float], std: Sequence[float], name: str, weights: str,
                 cache: bool = False) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std, name=name, weights=weights)
        self.model = model
        self.tokenizer = tokenizer
        self.class_names = tuple(class_names)
        self.templates = tuple(templates)
        self.logit_scale: float = model.logit_scale.exp().item()
        self.freeze()
        features = text_cache.cached(
            self._encode_classes, model=name, weights=weights, class_names=self.class_names,
            templates=self.templates, device=next(model.parameters()).device.type,
        ) if cache else self._encode_classes()
        self.register_buffer("text_features", features, persistent=False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features [B,D], not normalised, of images [B,3,H,W] in [0,1]."""
        return self.model.encode_image(self.prepare(images))

    def encode_grid(self, images: Tensor, layer: int | None = None) -> grids.Encoded:
        """Features of images [B,3,H,W] in [0,1] and of their places, from one pass of the tower.

        Args:
            layer: whose activations to hand out too (see grids.encode).

        Raises:
            UserError: for a tower that has no grid of features, or no such layer.
        """
        return grids.encode(self.model.visual, self.prepare(images), layer)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B,K] of image features [B,D]: logit_scale times the cosines."""
        return self.logit_scale * F.normalize(features, dim=-1) @ self.text_features.T

    def forward(self, images: Tensor) -> Tensor:
        """Zero-shot logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.classify(self.encode_image(images))

    @torch.no_grad()
    def _encode_classes(self) -> Tensor:
        prompts = [template.format(name) for name in self.class_names
                   for template in self.templates]
        device = next(self.model.parameters()).device
        features = torch.cat([
            self.model.encode_text(self.tokenizer(prompts[start:start + CHUNK]).to(device))
            for start in range(0, len(prompts), CHUNK)])
        features = F.normalize(features, dim=-1)
        by_class = features.view(len(self.class_names), len(self.templates), -1)
        return F.normalize(by_class.mean(1), dim=-1)


def load_clip(model: str, weights: str, *, class_names: Sequence[str], templates: Sequence[str],
              device: torch.device | str) -> ClipBackbone:
    """Load a CLIP.

    Args:
        model: open_clip's name.
        weights: one of the model's pretrained tags, a file, or the name of a packaged file. A file
            does not say how its network was trained: that of OpenAI or DFN needs a -quickgelu
            model.

    Raises:
        UserError: for an unknown model or tag, for a model whose activation is not that of the
            tag, for weights that are not here and cannot be downloaded or do not fit.
    """
    check_model("CLIP", model, open_clip.list_models())
    file = files.find(weights)
    if file is None:
        tag = _check_tag(model, weights)
        file, label = _file_of(tag), weights
    else:
        tag, label = _shared_by_tags(model), file.name
    normalisation = {key: tag[key] for key in ("mean", "std") if key in tag}
    try:
        net = open_clip.create_model(model, pretrained=str(file), device=device,
                                     force_preprocess_cfg=normalisation)
        tokenizer = open_clip.get_tokenizer(model)
    except (ImportError, *files.BAD_FILE) as error:
        raise UserError(f"open_clip cannot make {model!r} with {file}: "
                        f"{files.first_line(error)}") from error
    config = open_clip.get_model_preprocess_cfg(net)
    return ClipBackbone(net, tokenizer, class_names=class_names, templates=templates,
                        image_size=image_size(net), mean=config["mean"], std=config["std"],
                        name=model, weights=files.describe(label, file), cache=True).to(device)


def image_size(net: open_clip.CLIP) -> int:
    """Side in pixels of the images that `net` takes."""
    size = open_clip.get_model_preprocess_cfg(net)["size"]
    return size if isinstance(size, int) else size[0]


def _check_tag(model: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of the weights `tag` of `model`."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        if files.looks_like_file(tag):
            raise UserError(f"CLIP.WEIGHTS: there is no file {tag!r}")
        others = [name for name in open_clip.list_pretrained_models_by_tag(tag)
                  if name.removesuffix("-quickgelu") == model.removesuffix("-quickgelu")]
        if others:
            raise UserError(f"the weights {tag!r} need CLIP.MODEL {others[0]!r}, not {model!r}")
        raise UserError(f"CLIP.WEIGHTS: {model!r} has no weights {tag!r}: {nearest(tag, tags)}")
    # open_clip only warns, and the model then answers with another activation.
    if config.get("quick_gelu") and not open_clip.get_model_config(model).get("quick_gelu"):
        raise UserError(f"the weights {tag!r} were trained with QuickGELU: use CLIP.MODEL "
                        f"'{model}-quickgelu', not {model!r}")
    return config


def _file_of(tag: dict[str, Any]) -> Path:
    """The file of pretrained weights, downloaded if need be."""
    # open_clip writes org/model/file, or org/model/ for the usual names.
    repo, _, name = tag["hf_hub"].rpartition("/")
    return files.from_hub(repo, [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME])


def _shared_by_tags(model: str) -> dict[str, Any]:
    """The mean and std of a model's pretrained weights, where all of them have the same."""
    tags = [open_clip.get_pretrained_cfg(model, tag)
            for tag in open_clip.list_pretrained_tags_by_model(model)]
    return {key: tags[0][key] for key in ("mean", "std")
            if tags and all(tag[key] == tags[0][key] for tag in tags)}
