"""The pattern of DequanWang/tent: `setup_NAME(model)` returns a model with `reset()`.

    python examples/tent_setup.py

There, cifar10c.py chooses among setup_source, setup_norm and setup_tent, resets the model before
each corruption and severity, and measures with robustbench's clean_accuracy. One more function of
three lines adds all methods of this package.
"""

import torch
from torch import Tensor, nn

from tta_apm import Classifier, Method, load_backbone, load_dataset, load_method
from tta_apm.data.dataset import Domain


def setup_ours(model: nn.Module, name: str, **settings: object) -> Method:
    """A method on a network of robustbench, which takes images in [0,1] and normalises itself."""
    classifier = Classifier(model, mean=(0, 0, 0), std=(1, 1, 1))
    return load_method(name, classifier, **settings)


# ---- an evaluation with that pattern

DIGITS = load_dataset("digits_c")


def images_of(corruption: str, severity: int) -> tuple[Tensor, Tensor]:
    """Images [60,3,32,32] in [0,1] and labels [60]."""
    pixels = DIGITS.images(Domain("digits_c", corruption, severity), torch.arange(60).numpy())
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255,
            torch.from_numpy(DIGITS.labels[:60]))


def accuracy_of(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in x.split(batch_size)])
    return (logits.argmax(1) == y).float().mean().item()


def evaluate(model: Method) -> None:
    for severity in (5, 3):
        for corruption in ("fog", "contrast"):
            try:
                model.reset()
            except AttributeError:
                print("not resetting model")
            x, y = images_of(corruption, severity)
            accuracy = accuracy_of(model, x, y, batch_size=20)
            print(f"error % [{corruption}{severity}]: {1 - accuracy:.2%}")


def main() -> None:
    base = load_backbone("classifier", "timm/digits_resnet", "digits_resnet.safetensors",
                         dataset=DIGITS)  # it normalises images itself
    for name, settings in {"source": {}, "norm": {}, "tent": {"lr": 1e-2}, "sar": {"lr": 1e-2}
                           }.items():
        print(name)
        evaluate(setup_ours(base, name, **settings))


if __name__ == "__main__":
    main()
