"""A benchmark of yours in five lines: APM, MEMO and TENT in a loop that knew none of them.

    python examples/your_benchmark.py

The first half is a benchmark as anybody may have it: a network, a loader, a loop under no_grad that
counts what is right. The five lines that are marked put methods of this package into it.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tta_apm import Classifier, Method, load_backbone, load_dataset, load_method
from tta_apm.data.dataset import Domain

# ---- a benchmark of yours

DIGITS = load_dataset("digits_c")


def your_network() -> nn.Module:
    """Takes normalised images [B,3,32,32], gives logits [B,10]."""
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


# ---- what comes to it

def main() -> None:
    # 1: your network; it normalises inside from now on
    classifier = Classifier(your_network(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    # 2: a CLIP with the names of your classes, for methods that need one
    clip = load_backbone("clip", "digits_clip", "digits_clip.safetensors", dataset=DIGITS)
    methods = {
        "network": classifier,
        # 3: a method, which is a module like your network
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
