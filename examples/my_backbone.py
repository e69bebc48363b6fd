"""Your own kind of backbone in one file: a classifier and a CLIP together, and a method for it.

    tta-apm --cfg cfgs/digits_c/quick.yaml PLUGINS examples/my_backbone.py \
        METHODS "[source,clip_zero_shot,vote,vote SHARE 0.8]"
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tta_apm import Method, register
from tta_apm.backbones import classifiers, clip
from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import KINDS, Kind, Task

# In a package, an entry point of the group tta_apm.backbone_kinds replaces KINDS.register.
PAIR = Kind(__name__, {"MODEL": "timm/digits_resnet", "WEIGHTS": "digits_resnet.safetensors",
                       "CLIP_MODEL": "digits_clip", "CLIP_WEIGHTS": "digits_clip.safetensors"},
            has_prompts=True)
KINDS.register("pair")(PAIR)


class Pair(Backbone):
    """Two frozen networks for the same classes; each prepares images itself."""

    kind = "pair"

    def __init__(self, classifier: Backbone, clip: Backbone) -> None:
        super().__init__(image_size=None, mean=(0, 0, 0), std=(1, 1, 1),
                         name=f"{classifier.name} and {clip.name}",
                         weights=f"{classifier.weights}, {clip.weights}")
        self.classifier = classifier
        self.clip = clip
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [B,K] of both networks for images [B,3,H,W] in [0,1]."""
        return self.classifier(images), self.clip(images)


def load(section: Mapping[str, str], task: Task, device: torch.device) -> Pair:
    """The two networks with their weights: see Kind."""
    clip_section = {"MODEL": section["CLIP_MODEL"], "WEIGHTS": section["CLIP_WEIGHTS"]}
    return Pair(classifiers.load(section, task, device), clip.load(clip_section, task, device))


def untrained(model: str, task: Task, device: torch.device) -> Pair:
    """The two networks with random weights: see Kind."""
    return Pair(classifiers.untrained(model, task, device),
                clip.untrained(PAIR.section["CLIP_MODEL"], task, device))


@register("vote")
class Vote(Method):
    """The mean of both networks' probabilities.

    Args:
        backbone: a Pair.
        share: weight of the classifier, from 0 to 1.
    """

    needs = "pair"
    scope = "image"

    def __init__(self, backbone: Pair, *, share: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        first, second = (logits.softmax(-1) for logits in self.backbone(images))
        return torch.log(self.share * first + (1 - self.share) * second)

    def reset(self) -> None:
        """Do nothing: there is no state."""
