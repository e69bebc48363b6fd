"""CoCoOp: CLIP prompted by a learned context that depends on the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.clip_prompts import ContextPrompts, cosine_logits, load_context
from tta_apm.method import Method
from tta_apm.toolbox.episodes import chunk_size, chunks


class Cocoop(Method):
    """Conditional context optimisation (Zhou et al., CVPR 2022) with a learned context.

    Nothing is adapted at test time. As in CoOp, but a meta-net computes from the image's feature a
    vector that is added to all context vectors. Each image therefore has its own text features,
    and the text tower runs over all classes for every image.

    Args:
        backbone: the CLIP that the context was learned with.
        weights: a checkpoint of the authors' code (its `state_dict` holds `ctx` and `meta_net`),
            a .safetensors file with the same tensors, or the name of a packaged file.

    Raises:
        UserError: if the file is not found, holds no such context or fits another CLIP.
    """

    needs = "clip"
    scope = "image"

    def __init__(self, backbone: ClipBackbone, *, weights: str = "digits_cocoop.safetensors"
                 ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = load_context(weights, backbone, meta_net=True)
        self.prompts = ContextPrompts(backbone, len(self.context.ctx))
        self.chunk = chunk_size(self.prompts.bytes_per_image(), backbone.text_features.device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features = F.normalize(self.backbone.encode_image(images), dim=-1)
        return torch.cat([self._classify(features[part])
                          for part in chunks(len(features), self.chunk)])

    def _classify(self, features: Tensor) -> Tensor:
        text_features = self.prompts(self.context(features))  # [B,K,D]
        return cosine_logits(self.backbone, features[:, None], text_features)[:, 0]

    def reset(self) -> None:
        """Do nothing: there is no state."""
