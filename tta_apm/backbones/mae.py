"""MaskedAutoencoder: a frozen masked autoencoder with a probing head, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tta_apm.backbones.backbone import UNTRAINED, Backbone, check_model
from tta_apm.backbones.build import Task
from tta_apm.backbones.mae_vit import ARCHITECTURES, HEAD, Architecture, MaeVit, initialize
from tta_apm.backbones.weights import files
from tta_apm.backbones.weights.classes import settle_outputs
from tta_apm.backbones.weights.trees import Entry
from tta_apm.errors import UserError

OFFICIAL = ("https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large_full.pth",
            "https://dl.fbaipublicfiles.com/mae/ttt/prob_lr1e-3_wd.2_blk12_ep20.pth")


class MaskedAutoencoder(Backbone):
    """A frozen masked autoencoder with its probing head.

    Args:
        net: the network.
        architecture: its towers and images.
        name, weights, keep: see Backbone.
    """

    kind = "mae"
    #: Where its weights come from, for the error of a file that is not there.
    advice: ClassVar[str] = (f"The authors' ViT-L is in two, {' and '.join(OFFICIAL)}: download "
                             "both and give their paths, joined by a comma")

    def __init__(self, net: MaeVit, architecture: Architecture, *, name: str, weights: str,
                 keep: Sequence[int] | None = None) -> None:
        super().__init__(image_size=architecture.image_size, mean=architecture.mean,
                         std=architecture.std, name=name, weights=weights, keep=keep)
        self.net = net
        self.freeze()

    def classify(self, latents: Tensor) -> Tensor:
        """Logits [B,K] of the latents [B,1+L,D] of whole images."""
        return self.select_classes(self.net.classify(latents))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.classify(self.net.encode(self.prepare(images)))


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> MaskedAutoencoder:
    """See Kind."""
    return load_mae(section["MODEL"], section["WEIGHTS"], num_classes=task.num_outputs,
                    device=device, keep=task.keep)


def untrained(model: str, task: Task, device: torch.device | str) -> MaskedAutoencoder:
    """See Kind."""
    return untrained_mae(model, task, device)


def untrained_mae(model: str, task: Task, device: torch.device | str, *,
                  cls: type[MaskedAutoencoder] = MaskedAutoencoder) -> MaskedAutoencoder:
    """One with random weights, of the class `cls`. UserError for an unknown model."""
    check_model(cls.kind.upper(), model, ARCHITECTURES)
    net = MaeVit(ARCHITECTURES[model], task.num_outputs)
    initialize(net)
    return cls(net, ARCHITECTURES[model], name=model, weights=UNTRAINED).to(device)


def load_mae(model: str, weights: str, *, num_classes: int, device: torch.device | str,
             keep: Sequence[int] | None = None,
             cls: type[MaskedAutoencoder] = MaskedAutoencoder) -> MaskedAutoencoder:
    """Load a masked autoencoder with its probing head.

    Args:
        model: a name of ARCHITECTURES.
        weights: a file, or the name of a packaged file, with all weights; or two files joined by a
            comma, first that of encoder and decoder, then that of the head: "a.pth,b.pth".
        num_classes: number of outputs of the head.
        keep: see Backbone.
        cls: of the result.

    Raises:
        UserError: for an unknown model, or for weights that are not found or do not fit.
    """
    section = cls.kind.upper()
    check_model(section, model, ARCHITECTURES)
    found = [files.require_weights(section, name.strip(), cls.advice)
             for name in weights.split(",")]
    if len(found) > 2:
        raise UserError(f"{section}.WEIGHTS: {weights!r} names {len(found)} files; give one, or "
                        "two: that of encoder and decoder, and that of the head")
    head = _part(_on_meta(model, num_classes), is_head=True)
    outputs, keep = settle_outputs(found[-1], head, model, num_classes=num_classes, keep=keep,
                                   rename=partial(_only, head))
    net = _on_meta(model, outputs)
    parts = []
    for file, is_head in ((found[0], False), (found[-1], True)):
        wanted = _part(net, is_head=is_head)
        parts.append(file.select(model, wanted, partial(_only, wanted)))
    net.load_state_dict({name: tensor.float() for part in parts
                         for name, tensor in part.tensors.items()}, assign=True)
    label = ", ".join(files.describe(part.label, file.path) for part, file in zip(parts, found))
    return cls(net, ARCHITECTURES[model], name=model, weights=label, keep=keep).to(device)


def _on_meta(model: str, num_classes: int) -> MaeVit:
    """The network on the meta device, without values."""
    with torch.device("meta"):
        return MaeVit(ARCHITECTURES[model], num_classes)


def _part(net: MaeVit, *, is_head: bool) -> dict[str, Tensor]:
    """The tensors of the probing head, or all the others."""
    return {name: tensor for name, tensor in net.state_dict().items()
            if name.startswith(HEAD) == is_head}


def _only(wanted: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The entries of one part, out of a file that may hold the other part too."""
    return {name: entry for name, entry in entries.items() if name in wanted}
