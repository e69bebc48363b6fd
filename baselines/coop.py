"""CoOp: CLIP prompted by a learned context."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.clip_prompts import ContextPrompts, cosine_logits, load_context
from tta_apm.method import Method


class Coop(Method):
    """Context optimisation (Zhou et al., IJCV 2022) with a learned context.

    Nothing is adapted at test time. The prompt of each class is [context][class name][.], with
    context vectors that were learned from few labelled images; no template is used. Supported are
    contexts that all classes share and that precede the class name, as in the paper's tables of
    generalisation.

    Args:
        backbone: the CLIP that the context was learned with.
        weights: a checkpoint of the authors' code (its `state_dict` holds `ctx`), a .safetensors
            file with the same tensors, or the name of a packaged file.

    Raises:
        UserError: if the file is not found, holds no such context or fits another CLIP.
    """

    needs = "clip"
    scope = "image"
    text_features: Tensor

    def __init__(self, backbone: ClipBackbone, *, weights: str = "digits_coop.safetensors"
                 ) -> None:
        super().__init__()
        self.backbone = backbone
        context = load_context(weights, backbone, meta_net=False).ctx
        with torch.no_grad():
            text_features = ContextPrompts(backbone, len(context))(context[None])[0]
        self.register_buffer("text_features", text_features, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features = F.normalize(self.backbone.encode_image(images), dim=-1)
        return cosine_logits(self.backbone, features, self.text_features)

    def reset(self) -> None:
        """Do nothing: there is no state."""
