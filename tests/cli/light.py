"""A plugin for tests of processes: data set, network and method need no library beside torch."""

import numpy as np
import torch
from torch import nn

from tta_apm import Method, register
from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import KINDS, Kind
from tta_apm.data.dataset import Clean
from tta_apm.registry import DATASETS

KINDS.register("light")(Kind(__name__, {"MODEL": "light", "WEIGHTS": "none"}))


@DATASETS.register("light")
def light(*, data_dir, frost_dir):
    """Eight coloured images of three classes."""
    pixels = np.random.RandomState(0).randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    return Clean("light", pixels, np.arange(8) % 3, ("red", "green", "blue"), "single")


class MeanColour(Backbone):
    """The mean of each channel is the logit of its class."""

    kind = "light"

    def __init__(self):
        super().__init__(image_size=None, mean=(0, 0, 0), std=(1, 1, 1), name="light",
                         weights="none")
        self.net = nn.Linear(3, 3, bias=False)
        self.net.weight.data = torch.eye(3)
        self.freeze()

    def forward(self, images):
        return self.net(images.mean((2, 3)))


def load(section, task, device):
    return MeanColour().to(device)


def untrained(model, task, device):
    return MeanColour().to(device)


@register("scaled")
class Scaled(Method):
    """The logits times a factor, beside those of a teacher."""

    needs = "light"
    scope = "image"

    def __init__(self, backbone, *, scale: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.scale = scale

    def forward(self, images):
        logits = self.scale * self.backbone(images)
        self.details = {"teacher_prediction": logits.argmax(1)}
        return logits

    def reset(self):
        self.details = {}
