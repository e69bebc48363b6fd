"""Backbones of hosts: their CLIP and their classifiers as Backbones of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import PACKAGED, build
from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.clip_templates import IMAGENET, templates
from tta_apm.data import cifar, imagenet_classes
from tta_apm.errors import UserError

# A normalisation without effect.
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
# Functions that return the class names and the template set of a host's data set.
CLASSES: dict[str, Callable[[], tuple[Sequence[str], str]]] = {
    "cifar10": lambda: (cifar.CIFAR10.class_names, cifar.TEMPLATE_SET),
    "cifar100": lambda: (cifar.CIFAR100.class_names, cifar.TEMPLATE_SET),
    "imagenet": lambda: (imagenet_classes.class_names(), IMAGENET)}


class HostClip(ClipBackbone):
    """A host's CLIP with the host's text features: no second CLIP is loaded, no text is encoded.

    Args:
        model: open_clip's model, whose text tower the host may have deleted.
        tokenizer: of the model.
        class_names: K names.
        text_features: unit vectors [K,D].
        logit_scale: the inverse temperature, not its logarithm.
        mean, std: of the host's normalisation, which is done here.
        name, weights: as in the host's config.
    """

    def __init__(self, model: Any, tokenizer: Any, *, class_names: Sequence[str],
                 text_features: Tensor, logit_scale: float, mean: Sequence[float],
                 std: Sequence[float], name: str, weights: str) -> None:
        size = model.visual.image_size
        super().__init__(model, tokenizer, class_names=class_names,
                         text_features=text_features.detach().float(), logit_scale=logit_scale,
                         image_size=size if isinstance(size, int) else size[0], mean=mean, std=std,
                         name=name, weights=weights)
        self.to(text_features.device)
        if not hasattr(model, "text") and getattr(model, "transformer", None) is None:
            self.text_tower_gone = ("the host has deleted that of its CLIP: add "
                                    "CLIP.FREEZE_TEXT_ENCODER False to the command")

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features [B,D] in float32; the host's CLIP may compute in another dtype."""
        precision = next(self.model.visual.parameters()).dtype
        return self.model.encode_image(self.prepare(images).to(precision)).float()


def host_classifier(net: nn.Module, name: str, mean: Sequence[float] = NO_MEAN,
                    std: Sequence[float] = NO_STD) -> Classifier:
    """A host's network, which takes images normalised with `mean` and `std`, as a Classifier."""
    device = next(net.parameters()).device
    return Classifier(net, image_size=None, mean=mean, std=std, name=name,
                      weights="the host's").to(device)


def own_backbone(kind: str, section: Mapping[str, Any], *, dataset: str, num_classes: int,
                 device: torch.device | str) -> Backbone:
    """A backbone of this package, in place of the host's or for a kind that the host lacks.

    Args:
        kind: a name of backbones.build.PACKAGED.
        section: the section of that name in the host's config: see settings.EXTRA.
        dataset: cifar10, cifar100 or imagenet, which determines class names and prompts for a kind
            that has prompts.
        num_classes: number of classes of the host's data set.
        device: where to put it.

    Raises:
        UserError: if the section names no model, the data set has no class names here, or the
            model or its weights are unknown.
    """
    name = kind.upper()
    if not section.get("MODEL"):
        raise UserError(f"this method needs a backbone of the kind {kind!r}, which the host does "
                        f"not have: add {name}.MODEL and {name}.WEIGHTS to the command, as in "
                        "tta-apm's own configs")
    class_names: Sequence[str] = [str(number) for number in range(num_classes)]
    chosen: Sequence[str] = ()
    if PACKAGED[kind].has_prompts:
        class_names, template_set = _classes(dataset)
        asked = section.get("TEMPLATES", "auto")
        chosen = templates(template_set if asked == "auto" else asked)
    return build(kind, section["MODEL"], section["WEIGHTS"], class_names=class_names,
                 templates=chosen, device=device, section=section)


def _classes(dataset: str) -> tuple[Sequence[str], str]:
    """The class names of a data set, and the name of its template set."""
    if dataset not in CLASSES:
        raise UserError(f"no class names for {dataset!r} here, only for {', '.join(CLASSES)}: use "
                        "a method over the host's own classifier")
    return CLASSES[dataset]()
