"""A stand-in for the host's networks."""

import torch
from torch import nn


def define_model(config):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 10))


def load_pretrained_model(config, model):
    pass
