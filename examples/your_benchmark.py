"""Your own benchmark: five lines add APM, MEMO and TENT to an existing loop.

    python examples/your_benchmark.py

The first half is an ordinary benchmark: a network, a loader, and a loop under no_grad that counts
correct predictions. The five numbered lines add methods of this package to it.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tta_apm import Classifier, Method, load_backbone, load_dataset, load_method
from tta_apm.data.dataset import Domain

# ---- your benchmark

DIGITS = load_dataset("digits_c")


def your_network() -> nn.Module:
    """A network that takes normalised images [B,3,32,32] and returns logits [B,10]."""
    return load_backbone("classifier", "timm/digits_resnet", "digits_resnet.safetensors",
                         dataset=DIGITS).get_submodule("net")


def your_loader(corruption: str) -> DataLoader:
    """60 images [3,32,32] in [0,1] with their labels."""
    pixels = DIGITS.images(Domain("digits_c", corruption, 5), torch.arange(60).numpy())
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return DataLoader(TensorDataset(images, torch.from_numpy(DIGITS.labels[:60])), batch_size=20)


@torch.no_grad()
def your_accuracy(model: nn.Module, loader: DataLoader) -> float:
    right = [(model(images).argmax(1) == labels).float().mean() for images, labels in loader]
    return torch.stack(right).mean().item()


# ---- the added lines

def main() -> None:
    # 1: your network, which normalises images itself from now on
    classifier = Classifier(your_network(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    # 2: a CLIP with your class names, for methods that need one
    clip = load_backbone("clip", "digits_clip", "digits_clip.safetensors", dataset=DIGITS)
    methods = {
        "network": classifier,
        # 3: methods, which are modules like your network
        "tent": load_method("tent", classifier, lr=1e-2),
        "memo": load_method("memo", classifier, num_views=8, lr=1e-2),
        "apm": load_method("apm", clip, image_size=32, patch=8, code=64, hidden=(256, 128),
                           lr=3e-3),
    }
    for name, model in methods.items():
        for corruption in ("fog", "contrast"):
            if isinstance(model, Method):
                model.reset()  # 4: before each domain
            accuracy = your_accuracy(model, your_loader(corruption))  # 5: your own loop, unchanged
            print(f"{name:8} {corruption:9} {accuracy:.0%} right")


if __name__ == "__main__":
    main()
