"""Image tower: that of a CLIP as a classifier, for methods that know of no prompts."""

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
    """The tower of a CLIP, whose features [B,D] of prepared images are given unit length."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual(images)
        if isinstance(features, tuple):  # CoCa's tower gives its tokens, too
            features = features[0]
        return F.normalize(features, dim=-1)


def as_classifier(clip: ClipBackbone) -> Classifier:
    """A CLIP's image tower with a linear head: the text features of the classes times the scale.

    Its logits are the CLIP's zero-shot ones up to rounding. The tower is the CLIP's own, not a
    copy; the text tower is left behind, so that whoever copies the classifier copies the image
    tower alone.
    """
    text = clip.text_features
    head = nn.utils.skip_init(nn.Linear, text.shape[1], text.shape[0], bias=False)
    head.weight = nn.Parameter(clip.logit_scale * text)
    net = nn.Sequential(OrderedDict(tower=UnitFeatures(clip.model.visual), head=head))
    classifier = Classifier(net, mean=clip.mean.flatten().tolist(), std=clip.std.flatten().tolist(),
                            image_size=clip.image_size, name=clip.name, weights=clip.weights)
    return classifier.to(text.device)


def is_tower(classifier: Classifier) -> bool:
    """Whether a classifier comes from as_classifier."""
    return isinstance(getattr(classifier.net, "tower", None), UnitFeatures)


def suited(backbone: Backbone, needs: str) -> Backbone:
    """What a method that needs this kind of backbone is given: of a CLIP, maybe its image tower."""
    if needs != Classifier.kind or isinstance(backbone, Classifier):
        return backbone
    # Imported here: open_clip takes seconds, which a sweep without a CLIP need not wait for.
    from tta_apm.backbones.clip import ClipBackbone

    return as_classifier(backbone) if isinstance(backbone, ClipBackbone) else backbone
