"""ClipBackbone: a frozen CLIP of open_clip that classifies with prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import (
    HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor

from tta_apm.backbones import small_resnets  # noqa: F401  (makes them known to timm)
from tta_apm.backbones import grids, inputs, text_cache
from tta_apm.backbones.backbone import HALF, UNTRAINED, Backbone, check_model
from tta_apm.backbones.build import Task
from tta_apm.backbones.clip_templates import indistinguishable
from tta_apm.backbones.inputs import InputKeys, resolve
from tta_apm.backbones.sharing import once_per_batch
from tta_apm.backbones.weights import downloads, files
from tta_apm.backbones.weights.inert import Lazy
from tta_apm.backbones.weights.trees import Entry
from tta_apm.errors import UserError, explain, nearest

# Register this package's models, so that open_clip lists them too.
open_clip.add_model_config(files.PACKAGED)

SECTION = "CLIP"  # of the config, for error messages
# Batch size of the text tower, in prompts.
CHUNK = 512

# The file with model and preprocessing that open_clip writes beside its weights.
CONFIG = "open_clip_config.json"
# Entries of OpenAI's archives that are not weights.
SIZES = {"input_resolution", "context_length", "vocab_size"}
# Names that only files of Apple's MobileCLIP have, as in open_clip's convert_state_dict.
APPLE = ("image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight",
         "image_encoder.model.patch_emb.0.block.conv.weight")


class ClipBackbone(Backbone):
    """The two frozen towers of a CLIP and the text features of a list of classes.

    Args:
        model: open_clip's model.
        tokenizer: of the model; texts -> tokens int64 [N,L].
        class_names: K names.
        templates: the templates with which `text_features` were computed.
        text_features: unit vectors [K,D] of the classes (see encode_classes); None for a CLIP that
            only encodes images.
        logit_scale: the inverse temperature, not its logarithm; None takes the model's, which is
            about 100 after training.
        image_size, mean, std, name, weights, notes: see Backbone.

    Attributes:
        text_tower_gone: the reason why there is no text tower, for the errors of methods that
            learn prompts; "" if there is one.
    """

    kind = "clip"
    text_features: Tensor
    text_tower_gone = ""

    def __init__(self, model: open_clip.CLIP, tokenizer: Callable[..., Tensor], *,
                 class_names: Sequence[str] = (), templates: Sequence[str] = (),
                 text_features: Tensor | None = None, logit_scale: float | None = None,
                 image_size: int, mean: Sequence[float], std: Sequence[float], name: str,
                 weights: str, notes: str = "") -> None:
        super().__init__(image_size=image_size, mean=mean, std=std, name=name, weights=weights,
                         notes=notes)
        self.model = model
        self.tokenizer = tokenizer
        self.class_names = tuple(class_names)
        self.templates = tuple(templates)
        self.logit_scale: float = (model.logit_scale.exp().item() if logit_scale is None
                                   else logit_scale)
        self.freeze()
        self.register_buffer("text_features", text_features, persistent=False)

    @once_per_batch
    def encode_image(self, images: Tensor) -> Tensor:
        """Image features [B,D], not normalised, of images [B,3,H,W] in [0,1]."""
        return self.model.encode_image(self.prepare(images))

    @once_per_batch
    def encode_grid(self, images: Tensor, layer: int | None = None) -> grids.Encoded:
        """Features of images [B,3,H,W] in [0,1] and of their patches, from one forward.

        Args:
            layer: index of a layer whose activations to return too (see grids.encode).

        Raises:
            UserError: for a tower without a grid of features, or without that layer.
        """
        return grids.encode(self.model.visual, self.prepare(images), layer)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B,K] of image features [B,D]: logit_scale times the cosines."""
        return self.logit_scale * F.normalize(features, dim=-1) @ self.text_features.T

    def forward(self, images: Tensor) -> Tensor:
        """Zero-shot logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.classify(self.encode_image(images))


@torch.no_grad()
def encode_classes(model: open_clip.CLIP, tokenizer: Callable[..., Tensor],
                   class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Text features [K,D] of K classes, as unit vectors.

    The feature of a class is the mean of the normalised features of its prompts, normalised again
    (Radford et al. 2021, Section 3.1.4, and the notebook Prompt_Engineering of openai/CLIP).

    Args:
        model: open_clip's model, in eval mode.
        tokenizer: of the model; texts -> tokens int64 [N,L].
        class_names: K names.
        templates: one template or an ensemble, each with one `{}` for the class name.
    """
    prompts = [template.format(name) for name in class_names for template in templates]
    device = next(model.parameters()).device
    features = torch.cat([
        model.encode_text(tokenizer(prompts[start:start + CHUNK]).to(device))
        for start in range(0, len(prompts), CHUNK)])
    features = F.normalize(features, dim=-1)
    by_class = features.view(len(class_names), len(templates), -1)
    return F.normalize(by_class.mean(1), dim=-1)


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> ClipBackbone:
    """See Kind."""
    return load_clip(section["MODEL"], section["WEIGHTS"], class_names=task.class_names,
                     templates=task.templates, device=device, keys=InputKeys.of(section, SECTION))


def untrained(model: str, task: Task, device: torch.device | str) -> ClipBackbone:
    """See Kind. Text features are random too, since encoding prompts is not a cost per image."""
    check_model(SECTION, model, open_clip.list_models())
    net = open_clip.create_model(model, pretrained=None)
    width = open_clip.get_model_config(model)["embed_dim"]
    features = F.normalize(torch.randn(len(task.class_names), width), dim=-1)
    return ClipBackbone(net, open_clip.get_tokenizer(model), class_names=task.class_names,
                        text_features=features, image_size=image_size(net), mean=HALF, std=HALF,
                        name=model, weights=UNTRAINED).to(device)


def load_clip(model: str, weights: str, *, class_names: Sequence[str], templates: Sequence[str],
              device: torch.device | str, keys: InputKeys = InputKeys()) -> ClipBackbone:
    """Load a CLIP.

    Args:
        model: open_clip's name of the model.
        weights: one of the model's pretrained tags, a file, or the name of a packaged file.
            "FILE#SET" names one of several sets of weights in a file: see docs/checkpoints.md.
        class_names: K names; none for a CLIP that only encodes images.
        templates: see encode_classes.
        keys: the config's keys for the images that the network takes.

    Raises:
        UserError: for an unknown model or tag; for a model with another activation than the
            weights were trained with; for weights that are not found and cannot be downloaded, or
            do not fit; and for a file if no source states the mean and std of its images.
    """
    check_model(SECTION, model, open_clip.list_models())
    file = files.open_weights(weights)
    tag = {} if file else _check_tag(model, weights)
    file = file or files.Weights(_file_of(tag))
    try:
        net = open_clip.create_model(model, pretrained=None, pretrained_hf=False)
        tokenizer = open_clip.get_tokenizer(model)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"open_clip cannot make {model!r}: {explain(error)}") from error
    wanted = net.state_dict()
    selected = file.select(f"open_clip's {model}", wanted, partial(_renamed, net))
    net.load_state_dict(selected.tensors)
    knowledge = [(f"open_clip's tag {weights}", tag)] if tag else _known_of(model, file)
    activation = _activation(model, str(file.path), knowledge)
    spec = resolve(keys, [(source, inputs.parse(content)) for source, content in knowledge],
                   section=SECTION, model=model, needs_size=False,
                   advice=f"put open_clip's {CONFIG} of it beside {file.path.name}")
    label = files.describe(weights if tag else selected.label, file.path)
    net.to(device).eval()
    features = None
    if class_names:
        features = text_cache.cached(
            partial(encode_classes, net, tokenizer, class_names, templates), model=model,
            weights=label, class_names=class_names, templates=templates,
            device=next(net.parameters()).device.type)
        if same := indistinguishable(class_names, features):
            print(f"{model}: {same}", file=sys.stderr)
    return ClipBackbone(net, tokenizer, class_names=class_names, templates=templates,
                        text_features=features, image_size=image_size(net), mean=spec.mean,
                        std=spec.std, name=model, weights=label,
                        notes=f"by {spec.source}, {activation}").to(device)


def image_size(net: open_clip.CLIP) -> int:
    """Side in pixels of the images that `net` takes."""
    size = open_clip.get_model_preprocess_cfg(net)["size"]
    return size if isinstance(size, int) else size[0]


def _renamed(net: open_clip.CLIP, entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The entries of an old file of open_clip, or of one of Apple's, under open_clip's names."""
    if any(name in entries for name in APPLE):
        tensors = {name: entry.read() if isinstance(entry, Lazy) else entry
                   for name, entry in entries.items()}
        return convert_state_dict(net, tensors)
    if "positional_embedding" in entries and not hasattr(net, "positional_embedding"):
        return convert_to_custom_text_state_dict(dict(entries))
    return entries


def _known_of(model: str, file: files.Weights) -> list[tuple[str, dict[str, Any]]]:
    """The sources that state a file's quick_gelu, mean and std, with their values; surest first."""
    found: list[tuple[str, dict[str, Any]]] = []
    has_sizes = any(SIZES <= entries.keys() for entries in file.state_dicts.values())
    if file.content.is_script and has_sizes:
        # Only OpenAI published CLIPs as TorchScript, all with the same preprocessing.
        found.append(("OpenAI's archive", {"quick_gelu": True, "mean": OPENAI_DATASET_MEAN,
                                           "std": OPENAI_DATASET_STD}))
    config = inputs.read_beside(file.path, CONFIG)
    described, preprocessing = config.get("model_cfg"), config.get("preprocess_cfg")
    if isinstance(described, dict) and _is_alike(described, open_clip.get_model_config(model)):
        found.append((f"{CONFIG} beside {file.path.name}", {
            "quick_gelu": bool(described.get("quick_gelu")),
            **(preprocessing if isinstance(preprocessing, dict) else {})}))
    tags = [inputs.parse(open_clip.get_pretrained_cfg(model, tag))
            for tag in open_clip.list_pretrained_tags_by_model(model)]
    found.append((f"all of open_clip's {model}", inputs.common(tags)))
    if (files.PACKAGED / f"{model}.json").is_file():
        found.append(("this package", {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}))
    return found


def _is_alike(described: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether the config beside a file describes this architecture, not another file's."""
    vision = described.get("vision_cfg")
    return described.get("embed_dim") == known["embed_dim"] and isinstance(vision, dict) and all(
        vision.get(key) == known["vision_cfg"].get(key)
        for key in ("image_size", "layers", "width", "patch_size", "timm_model_name"))


def _activation(model: str, file: str, knowledge: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The activation and its source in words, for the record.

    Raises:
        UserError: if `model` has another activation than the weights of `file`.
    """
    has_quick = bool(open_clip.get_model_config(model).get("quick_gelu"))
    name = "QuickGELU" if has_quick else "GELU"
    for source, content in knowledge:
        if "quick_gelu" in content:
            if bool(content["quick_gelu"]) == has_quick:
                return f"{name} by {source}"
            base = model.removesuffix("-quickgelu")
            right = base if has_quick else f"{base}-quickgelu"
            advice = f"use CLIP.MODEL {right!r}" if right in open_clip.list_models() else (
                "no model of open_clip has it in this architecture")
            other = "GELU" if has_quick else "QuickGELU"
            raise UserError(f"{file} was trained with {other} according to {source}, and {model!r} "
                            f"has {name}: {advice}")
    return f"{name} by CLIP.MODEL"


def _check_tag(model: str, tag: str) -> dict[str, Any]:
    """open_clip's config of the pretrained weights `tag` of `model`.

    Raises:
        UserError: for an unknown tag, or one that needs another model.
    """
    tags = open_clip.list_pretrained_tags_by_model(model)
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        if files.looks_like_file(tag):
            raise UserError(f"CLIP.WEIGHTS: file not found: {tag!r}")
        others = [name for name in open_clip.list_pretrained_models_by_tag(tag)
                  if name.removesuffix("-quickgelu") == model.removesuffix("-quickgelu")]
        if others:
            raise UserError(f"the weights {tag!r} need CLIP.MODEL {others[0]!r}, not {model!r}")
        raise UserError(f"CLIP.WEIGHTS: {model!r} has no weights {tag!r}: {nearest(tag, tags)}")
    # open_clip only warns, and the model then runs with the wrong activation.
    if config.get("quick_gelu") and not open_clip.get_model_config(model).get("quick_gelu"):
        raise UserError(f"the weights {tag!r} were trained with QuickGELU: use CLIP.MODEL "
                        f"'{model}-quickgelu', not {model!r}")
    return config


def _file_of(tag: dict[str, Any]) -> Path:
    """The file of pretrained weights, downloaded unless it is cached."""
    # open_clip writes org/model/file, or org/model/ for the default file names.
    repo, _, name = tag["hf_hub"].rpartition("/")
    return downloads.from_hub(repo, [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME])
