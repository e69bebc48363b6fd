"""Methods in your own loop: TENT and APM around your own networks.

    python examples/own_loop.py
"""

import torch
from torch import nn

from tta_apm import Classifier, load_backbone, load_dataset, load_method
from tta_apm.data.dataset import Domain


def main() -> None:
    dataset = load_dataset("digits_c")
    fog = dataset.images(Domain("digits_c", "fog", 5), torch.arange(40).numpy())
    images = torch.from_numpy(fog).permute(0, 3, 1, 2) / 255    # [B,3,H,W] in [0,1]
    labels = torch.from_numpy(dataset.labels[:40])

    net = nn.Sequential(nn.Conv2d(3, 16, 5, 2), nn.BatchNorm2d(16), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))  # yours
    classifier = Classifier(net, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), image_size=32)
    tent = load_method("tent", classifier, lr=1e-3)
    for batch, truth in zip(images.split(20), labels.split(20)):
        logits = tent(batch)
        print(f"TENT on an untrained network: {(logits.argmax(1) == truth).float().mean():.0%}")

    clip = load_backbone("clip", "digits_clip", "digits_clip.safetensors", dataset=dataset)
    apm = load_method("apm", clip, image_size=32, patch=8, code=64, hidden=(256, 128), lr=3e-3)
    print(f"APM: {(apm(images).argmax(1) == labels).float().mean():.0%} right")


if __name__ == "__main__":
    main()
