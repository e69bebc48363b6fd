"""Classifier: a frozen network from timm, torchvision or robustbench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tta_apm.backbones import from_robustbench, from_timm, from_torchvision
from tta_apm.backbones.backbone import HALF, UNTRAINED, Backbone
from tta_apm.backbones.build import Task
from tta_apm.backbones.inputs import InputKeys, resolve
from tta_apm.backbones.libraries import SECTION, LoadedNetwork, Request
from tta_apm.backbones.own_networks import is_own, make_network
from tta_apm.backbones.sharing import once_per_batch
from tta_apm.backbones.weights import files
from tta_apm.backbones.weights.classes import load_classes
from tta_apm.errors import UserError

# The family of users' own networks.
OWN = "own"


class HeadInput(NamedTuple):
    """A classifier's logits, and the input of its last linear layer.

    Args:
        logits: [B,K].
        features: the input of the last linear layer that ran; the logits if none ran.
        layer: the index of that layer among the modules of the network, int64 []; -1 unless the
            features are [B,D] and its output for them is the logits.
    """

    logits: Tensor
    features: Tensor
    layer: Tensor


class Classifier(Backbone):
    """A frozen network whose outputs are logits.

    Args:
        net: any module, normalised images [B,3,H,W] -> logits [B,K]. It is put into eval mode and
            its parameters do not require grad; methods that adapt it work on a copy.
        image_size, mean, std, name, weights, keep, notes: see Backbone. By default images are not
            resized, and the name is that of the module's class.
    """

    kind = "classifier"

    def __init__(self, net: nn.Module, *, mean: Sequence[float], std: Sequence[float],
                 image_size: int | None = None, name: str = "", weights: str = "as given",
                 keep: Sequence[int] | None = None, notes: str = "") -> None:
        super().__init__(image_size=image_size, mean=mean, std=std,
                         name=name or type(net).__name__, weights=weights, keep=keep, notes=notes)
        self.net = net
        self.freeze()

    @once_per_batch
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.select_classes(self.net(self.prepare(images)))

    @once_per_batch
    def head_input(self, images: Tensor) -> HeadInput:
        """Logits and features of images [B,3,H,W] in [0,1], from one forward."""
        seen: list[tuple[int, Tensor]] = []

        def keep(index: int, layer: nn.Module, inputs: tuple[Tensor]) -> None:
            seen[:] = [(index, inputs[0])]
        modules = list(self.net.modules())
        hooks = [module.register_forward_pre_hook(partial(keep, index))
                 for index, module in enumerate(modules) if isinstance(module, nn.Linear)]
        try:
            logits = self.select_classes(self.net(self.prepare(images)))
        finally:
            for hook in hooks:
                hook.remove()
        index, features = seen[0] if seen else (-1, logits)
        if features.dim() != 2 or index >= 0 and not torch.equal(
                self.select_classes(modules[index](features)), logits):
            index = -1
        # Contiguous, since a view of larger activations (a class token) could not be shared.
        return HeadInput(logits, features.contiguous(), torch.tensor(index))


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> Classifier:
    """See Kind."""
    return load_classifier(section["MODEL"], section["WEIGHTS"], num_classes=task.num_outputs,
                           device=device, keep=task.keep, keys=InputKeys.of(section, SECTION))


def untrained(model: str, task: Task, device: torch.device | str) -> Classifier:
    """See Kind."""
    family, name = split(model)
    net, image_size = FAMILIES[family].untrained(name, task.num_outputs)
    return on_device(Classifier(net, image_size=image_size, mean=HALF, std=HALF, name=model,
                                weights=UNTRAINED), device)


def load_classifier(model: str, weights: str, *, num_classes: int, device: torch.device | str,
                    keep: Sequence[int] | None = None, keys: InputKeys = InputKeys()) -> Classifier:
    """Load a classifier.

    Args:
        model: timm/NAME, torchvision/NAME or robustbench/NAME (a model of its corruption
            leaderboards; num_classes determines the data set); or a user's own network as
            FILE.py:FUNCTION, MODULE:FUNCTION or the name of an entry point.
        weights: "" for the library's pretrained ones, a file, or the name of a packaged file;
            for torchvision also the name of a set of its weights, e.g. IMAGENET1K_V1. "FILE#SET"
            names one of several sets of weights in a file: see docs/checkpoints.md.
        num_classes: number of outputs of the network.
        keep: see Backbone.
        keys: the config's keys for the images that the network takes.

    Raises:
        UserError: for an unknown model; for weights that are not found and cannot be downloaded,
            do not fit or have other classes; and for a file if no source states the size, mean and
            std of its images.
    """
    family, name = split(model)
    loaded = FAMILIES[family].load(Request(name, weights, num_classes, keep, keys))
    size, mean, std, source = loaded.inputs
    return on_device(Classifier(loaded.net, image_size=size, mean=mean, std=std, name=model,
                                weights=loaded.weights, keep=loaded.keep,
                                notes=source and f"by {source}"), device)


def split(model: str) -> tuple[str, str]:
    """Split a model's name into its family, e.g. "timm", and the name within it.

    Raises:
        UserError: for an unknown family.
    """
    if is_own(model):
        return OWN, model
    family, _, name = model.partition("/")
    if family not in FAMILIES or not name or family == OWN:
        known = ", ".join(f"{known}/NAME" for known in FAMILIES if known != OWN)
        raise UserError(f"CLASSIFIER.MODEL {model!r} must be one of {known}, or FILE.py:FUNCTION "
                        "with a function that returns your network")
    return family, name


def on_device(classifier: Classifier, device: torch.device | str) -> Classifier:
    """Move a classifier to `device`; on a CPU in channels-last format, with which convolutions are
    up to 1.8 times as fast."""
    if torch.device(device).type == "cpu":
        classifier.to(memory_format=torch.channels_last)
    return classifier.to(device)


def load_own(request: Request) -> LoadedNetwork:
    """Load a user's own network."""
    spec = resolve(request.keys, [], section=SECTION, model=request.name, needs_size=False,
                   advice="let the network take images in [0,1] and set MEAN 0 and STD 1")
    if not request.weights:
        return LoadedNetwork(make_network(request.name), request.keep, spec, "as built")
    loaded = load_classes(lambda num_classes: make_network(request.name),
                          files.require_weights(SECTION, request.weights), request.name,
                          num_classes=request.num_classes, keep=request.keep)
    return LoadedNetwork(loaded.net, loaded.keep, spec, loaded.label)


def untrained_own(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A user's own network with its initial weights, for images of any size (None)."""
    return make_network(name), None


class Family(NamedTuple):
    """A source of networks, e.g. a library.

    Attributes:
        load: returns a network with the requested weights.
        untrained: takes a name and the number of classes; returns a network with random weights
            and the side of its images in pixels, None for any.
    """

    load: Callable[[Request], LoadedNetwork]
    untrained: Callable[[str, int], tuple[nn.Module, int | None]]


FAMILIES = {
    OWN: Family(load_own, untrained_own),
    "timm": Family(from_timm.load, from_timm.untrained),
    "torchvision": Family(from_torchvision.load, from_torchvision.untrained),
    "robustbench": Family(from_robustbench.load, from_robustbench.untrained)}
