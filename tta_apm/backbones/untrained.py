"""untrained: a backbone of any kind with random weights, to measure what methods cost on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones.backbone import Backbone, check_model
from tta_apm.backbones.kinds import KINDS
from tta_apm.backbones.weights import files
from tta_apm.errors import UserError, nearest

WEIGHTS = "random"
# Of pixels, where a library does not say: any will do.
MEAN = STD = (0.5, 0.5, 0.5)


def untrained(kind: str, model: str, *, class_names: Sequence[str],
              device: torch.device | str) -> Backbone:
    """A backbone of the architecture that a config names; nothing is read or downloaded.

    Args:
        kind, model: see build.
        class_names: K names; a classifier has K outputs.

    Raises:
        UserError: for an unknown kind or model.
    """
    num_classes = len(class_names)
    if kind == "clip":
        backbone = _clip(model, class_names)
    elif kind == "classifier":
        backbone = _classifier(model, num_classes, device)
    elif kind == "mae":
        backbone = _mae(model, num_classes)
    elif kind == "rotation":
        backbone = _rotation(model, num_classes)
    else:
        raise UserError(f"unknown kind of backbone {kind!r}: {nearest(kind, KINDS)}")
    return backbone.to(device)


def _clip(model: str, class_names: Sequence[str]) -> Backbone:
    import open_clip

    from tta_apm.backbones.clip import ClipBackbone, image_size

    class Undescribed(ClipBackbone):
        """To describe the classes costs no image anything: their features are drawn, too."""

        def _encode_classes(self) -> Tensor:
            width = open_clip.get_model_config(model)["embed_dim"]
            return F.normalize(torch.randn(len(self.class_names), width), dim=-1)

    check_model("CLIP", model, open_clip.list_models())
    net = open_clip.create_model(model, pretrained=None)
    return Undescribed(net, open_clip.get_tokenizer(model), class_names=class_names, templates=(),
                       image_size=image_size(net), mean=MEAN, std=STD, name=model, weights=WEIGHTS)


def _classifier(model: str, num_classes: int, device: torch.device | str) -> Backbone:
    from tta_apm.backbones.classifiers import OWN, Classifier, placed, split

    family, name = split(model)
    makers = {OWN: _own, "timm": _timm, "torchvision": _torchvision, "robustbench": _robustbench}
    net, image_size = makers[family](name, num_classes)
    return placed(Classifier(net, image_size=image_size, mean=MEAN, std=STD, name=model,
                             weights=WEIGHTS), device)


def _own(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    from tta_apm.backbones.own_networks import make_network

    return make_network(name), None


def _timm(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    import timm
    from timm.data import resolve_model_data_config

    from tta_apm.backbones import small_resnets  # noqa: F401  (makes ours known to timm)
    from tta_apm.backbones.classifiers import check_known

    check_known(name, {*timm.list_models(), *timm.list_models(include_tags=True)}, "timm")
    net = timm.create_model(name, num_classes=num_classes)
    return net, resolve_model_data_config(net)["input_size"][-1]


def _torchvision(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    from torchvision import models

    from tta_apm.backbones.classifiers import check_known

    check_known(name, models.list_models(module=models), "torchvision")
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    return models.get_model(name, num_classes=num_classes), preset.crop_size[0]


def _robustbench(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    from tta_apm.backbones.classifiers import robustbench_entry

    entry, _, image_size = robustbench_entry(name, num_classes)
    with files.reading():  # some of its networks come with weights
        return entry["model"](), image_size


def _mae(model: str, num_classes: int) -> Backbone:
    from tta_apm.backbones.mae import ARCHITECTURES, MaeVit, MaskedAutoencoder, initialize

    check_model("MAE", model, ARCHITECTURES)
    net = MaeVit(ARCHITECTURES[model], num_classes)
    initialize(net)
    return MaskedAutoencoder(net, ARCHITECTURES[model], name=model, weights=WEIGHTS)


def _rotation(model: str, num_classes: int) -> Backbone:
    from tta_apm.backbones.rotation import MODELS, Rotation

    check_model("ROTATION", model, MODELS)
    return Rotation(MODELS[model].make(num_classes), MODELS[model], name=model, weights=WEIGHTS)
