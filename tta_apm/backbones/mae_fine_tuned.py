"""FineTunedMae: the encoder of a masked autoencoder, fine-tuned with a linear head.

Names and shapes are those of facebookresearch/mae (models_vit.py), so its fine-tuned files load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tta_apm.backbones.backbone import UNTRAINED, Backbone, check_model
from tta_apm.backbones.build import Task
from tta_apm.backbones.mae_vit import ARCHITECTURES, Architecture
from tta_apm.backbones.weights.classes import load_classes
from tta_apm.backbones.weights.files import require_weights

SECTION = "MAE_FINE_TUNED"
OFFICIAL = "https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_large.pth"


class FineTunedMae(Backbone):
    """A frozen vision transformer: an MAE's encoder, fine-tuned to classify.

    Args:
        net, architecture: the network, and the images that it takes.
        name, weights, keep: see Backbone.
    """

    kind = "mae_fine_tuned"

    def __init__(self, net: VisionTransformer, architecture: Architecture, *, name: str,
                 weights: str, keep: Sequence[int] | None = None) -> None:
        super().__init__(image_size=architecture.image_size, mean=architecture.mean,
                         std=architecture.std, name=name, weights=weights, keep=keep)
        self.net = net
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.select_classes(self.net(self.prepare(images)))


def make_vit(architecture: Architecture, num_classes: int, *, pool: str = "avg"
             ) -> VisionTransformer:
    """A network with random weights.

    Args:
        pool: what the linear layer classifies: "avg", the normalised mean of the patches' latents,
            MAE's default; or "token", the class token's latent.
    """
    encoder = architecture.encoder
    return VisionTransformer(
        img_size=architecture.image_size, patch_size=architecture.patch, num_classes=num_classes,
        global_pool=pool, embed_dim=encoder.width, depth=encoder.depth, num_heads=encoder.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6))


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> FineTunedMae:
    """See Kind.

    The pooling follows from the file: the mean of the patches if it has a layer fc_norm, else the
    class token.

    Raises:
        UserError: for an unknown model, or for weights that are not found or do not fit.
    """
    model = section["MODEL"]
    check_model(SECTION, model, ARCHITECTURES)
    file = require_weights(SECTION, section["WEIGHTS"], f"The authors' ViT-L is {OFFICIAL}: "
                           "download it and give its path")
    pool = "avg" if any(name.endswith("fc_norm.weight") for entries in file.state_dicts.values()
                        for name in entries) else "token"
    loaded = load_classes(partial(make_vit, ARCHITECTURES[model], pool=pool), file, model,
                          num_classes=task.num_outputs, keep=task.keep)
    net = loaded.net
    assert isinstance(net, VisionTransformer)
    return FineTunedMae(net, ARCHITECTURES[model], name=model, weights=loaded.label,
                        keep=loaded.keep).to(device)


def untrained(model: str, task: Task, device: torch.device | str) -> FineTunedMae:
    """See Kind."""
    check_model(SECTION, model, ARCHITECTURES)
    return FineTunedMae(make_vit(ARCHITECTURES[model], task.num_outputs), ARCHITECTURES[model],
                        name=model, weights=UNTRAINED).to(device)
