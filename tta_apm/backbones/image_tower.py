"""Image tower: a CLIP's image tower as a classifier, for methods that need a classifier."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.classifiers import Classifier

if TYPE_CHECKING:
    from tta_apm.backbones.clip import ClipBackbone


class UnitFeatures(nn.Module):
    """A CLIP's image tower, followed by the normalisation of its features [B,D]."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual(images)
        if isinstance(features, tuple):  # CoCa's tower returns its tokens too
            features = features[0]
        return F.normalize(features, dim=-1)


def as_classifier(clip: ClipBackbone) -> Classifier:
    """A CLIP's image tower with a linear head, whose weight is logit_scale · text features.

    Its logits are the CLIP's zero-shot logits up to rounding. The tower is shared with the CLIP,
    not copied. The text tower is not part of the classifier, so copies of it are small.
    """
    text = clip.text_features
    head = nn.utils.skip_init(nn.Linear, text.shape[1], text.shape[0], bias=False)
    head.weight = nn.Parameter(clip.logit_scale * text)
    net = nn.Sequential(OrderedDict(tower=UnitFeatures(clip.model.visual), head=head))
    classifier = Classifier(net, mean=clip.mean.flatten().tolist(), std=clip.std.flatten().tolist(),
                            image_size=clip.image_size, name=clip.name, weights=clip.weights)
    return classifier.to(text.device)


def is_tower(classifier: Classifier) -> bool:
    """Whether a classifier was made by as_classifier."""
    return isinstance(getattr(classifier.net, "tower", None), UnitFeatures)


def suited(backbone: Backbone, needs: str) -> Backbone:
    """The backbone for a method that needs this kind: for a classifier, a CLIP's image tower.

    Other backbones are returned unchanged.
    """
    if needs != Classifier.kind or isinstance(backbone, Classifier):
        return backbone
    # Imported here, since open_clip takes seconds, and a sweep without a CLIP does not need it.
    from tta_apm.backbones.clip import ClipBackbone

    return as_classifier(backbone) if isinstance(backbone, ClipBackbone) else backbone
