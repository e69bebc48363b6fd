"""MTTT: a ViT whose layers train inner networks on the tokens of each image."""

from __future__ import annotations

import torch
from torch import Tensor

from tta_apm.backbones.mttt_layers import InnerLoop, InnerLoopLayer
from tta_apm.backbones.mttt_vit import LAYERS, MtttVit
from tta_apm.method import Method


class Mttt(Method):
    """Learning to (learn at test time), "MTTT" (Sun et al. 2023, arXiv 2310.13807).

    Attention is replaced by layers with an inner loop: in each head, a small inner network takes
    gradient steps on reconstructing the layer's tokens, and then transforms them. The backbone was
    trained through these steps, so they are part of its forward. No state is carried from one image
    to the next. With `steps=0` the inner networks keep their initial weights.

    Args:
        backbone: ViTs of one size, one for each kind of layer.
        layer: "mlp" for MTTT-MLP, "linear" for MTTT-Linear; "self_attention" and
            "linear_attention" are networks without an inner loop, for comparison.
        steps: passes of the inner loop over the tokens of a layer.
        mini_batches: updates per pass, on disjoint random parts of the tokens; the paper's
            "SGD T=4" is `mini_batches=4`.
        lr: learning rate of the inner loop, the paper's η.
        seed: of the random parts.

    Raises:
        UserError: for an unknown layer, for values out of range, and if `mini_batches`
            does not divide the number of tokens.
    """

    needs = "mttt_vit"
    scope = "image"

    def __init__(self, backbone: MtttVit, *, layer: str = "mlp", steps: int = 1,
                 mini_batches: int = 1, lr: float = 1.0, seed: int = 42) -> None:
        super().__init__()
        backbone.check_layer("mttt", layer)
        self.inner = InnerLoop(steps, mini_batches, lr)
        self.inner.check("mttt", backbone.num_tokens)
        self.backbone = backbone
        self.layer = layer
        self.seed = seed
        self.learns = steps > 0 and issubclass(LAYERS[layer], InnerLoopLayer)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)  # the same parts for every image
        logits = self.backbone(images, self.layer, self.inner._replace(generator=generator))
        self.did.update(updated=len(images) if self.learns else 0)
        return logits

    def reset(self) -> None:
        """Do nothing: the inner networks start from their initial weights in every forward."""
