"""Your own network: ResNet-20 for CIFAR (He et al. 2016, Section 4.2), with a file of weights.

    tta-apm --cfg cfgs/cifar10_jpeg_c/all.yaml METHODS [source,norm,tent] \
        CLASSIFIER.MODEL examples/my_network.py:resnet20 CLASSIFIER.WEIGHTS resnet20.th \
        CLASSIFIER.MEAN [0.485,0.456,0.406] CLASSIFIER.STD [0.229,0.224,0.225]

Parameters have the names of akamaster/pytorch_resnet_cifar10, whose published weights fit.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters: every second pixel, zero channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, ::self.stride, ::self.stride]
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))


class ResNet(nn.Module):
    """Three stages of `depth` blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(before if block == 0 else width, width,
                                  2 if block == 0 and before != width else 1)
                            for block in range(depth)))
            for before, width in zip(widths, widths[1:]))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B,K] of normalised images [B,3,H,W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((-2, -1)))


def resnet20() -> nn.Module:
    return ResNet(3)


def resnet56() -> nn.Module:
    return ResNet(9)
