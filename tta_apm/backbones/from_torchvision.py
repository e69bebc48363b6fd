"""Networks of torchvision, pretrained or untrained.

The library is imported in the functions that use it, since that takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tta_apm.backbones import inputs
from tta_apm.backbones.inputs import resolve
from tta_apm.backbones.libraries import (
    SECTION, LoadedNetwork, Request, check_classes, check_known, download)
from tta_apm.backbones.weights import files
from tta_apm.backbones.weights.classes import load_classes
from tta_apm.errors import UserError, nearest


def load(request: Request) -> LoadedNetwork:
    """Load a network of torchvision."""
    from torchvision import models
    name, weights = request.name, request.weights
    check_known(name, models.list_models(module=models), "torchvision")
    choices = models.get_model_weights(name)
    if files.find(weights) or files.looks_like_file(weights):
        file = files.require_weights(SECTION, weights)
        loaded = load_classes(
            lambda num_classes: models.get_model(name, num_classes=num_classes),
            file, f"torchvision's {name}", num_classes=request.num_classes, keep=request.keep)
        known = [_preset_inputs(preset) for preset in choices]
        spec = resolve(request.keys, [(f"all of torchvision's {name}", inputs.common(known))],
                       section=SECTION, model=f"torchvision's {name}",
                       advice="see torchvision's documentation of the weights that it has")
        return LoadedNetwork(loaded.net, loaded.keep, spec, loaded.label)
    if weights and weights not in choices.__members__:
        raise UserError(f"CLASSIFIER.WEIGHTS: torchvision's {name} has no {weights!r}, and "
                        f"there is no such file: {nearest(weights, choices.__members__)}")
    preset = choices[weights or "DEFAULT"]
    check_classes(len(preset.meta["categories"]), request.num_classes, f"torchvision's {preset}")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(preset.url).name
    net = download(lambda: models.get_model(name, weights=preset), preset.url, cached)
    spec = resolve(request.keys, [(f"torchvision's {preset}", _preset_inputs(preset))],
                   section=SECTION, model=name, advice="")
    return LoadedNetwork(net, request.keep, spec, files.describe(str(preset), cached))


def untrained(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A network of torchvision with random weights, and the side of its images in pixels."""
    from torchvision import models
    check_known(name, models.list_models(module=models), "torchvision")
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    return models.get_model(name, num_classes=num_classes), preset.crop_size[0]


def _preset_inputs(preset: Any) -> dict[str, Any]:
    """The size, mean and std of images that torchvision states for a set of its weights."""
    transform = preset.transforms()
    return {"image_size": transform.crop_size[0], "mean": tuple(transform.mean),
            "std": tuple(transform.std)}
