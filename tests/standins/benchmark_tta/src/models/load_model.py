"""A stand-in for the host's models, which it moves to a GPU without asking."""

import torch
from torch import nn


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 10))

    def cuda(self, device=None):
        if not torch.cuda.is_available():
            raise AssertionError("Torch not compiled with CUDA enabled")
        return super().cuda(device)


def load_model(model_name, checkpoint_dir=None, domain=None):
    torch.manual_seed(0)
    return Classifier()
