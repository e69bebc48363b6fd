"""MaeVit: the network of a masked autoencoder with a probing head.

Parameters have the names and shapes of facebookresearch/mae and
yossigandelsman/test_time_training_mae, whose files therefore load. Shapes: N sequences, L patches
of an image, V of them visible, P = 3·patch² values of a patch, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, PatchEmbed
from torch import Tensor, nn

HEAD = "classifier"  # prefix of the probing head's names
MASK_RATIO = 0.75  # in pretraining


class Tower(NamedTuple):
    """A stack of Transformer blocks."""

    width: int
    depth: int
    heads: int


class Architecture(NamedTuple):
    """The three towers, and the images that they take (sides in pixels)."""

    patch: int
    encoder: Tower
    decoder: Tower
    head: Tower
    image_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


ARCHITECTURES = {
    "mae_vit_base_patch16": Architecture(
        16, encoder=Tower(768, 12, 12), decoder=Tower(512, 8, 16), head=Tower(768, 12, 12)),
    "mae_vit_large_patch16": Architecture(
        16, encoder=Tower(1024, 24, 16), decoder=Tower(512, 8, 16), head=Tower(768, 12, 12)),
    "digits_mae": Architecture(
        8, encoder=Tower(48, 4, 4), decoder=Tower(32, 1, 4), head=Tower(48, 2, 4),
        image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "cifar_mae": Architecture(
        4, encoder=Tower(96, 4, 4), decoder=Tower(48, 1, 4), head=Tower(96, 2, 4),
        image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}


class MaeVit(nn.Module):
    """A masked autoencoder (He et al., CVPR 2022) and the head that classifies its latents.

    Any subset of an image's patches can be encoded, in any order, since each patch comes with its
    index in the image. So only visible patches are embedded and only hidden ones are predicted.
    """

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        super().__init__()
        patch, encoder, decoder, head, image_size, *_ = architecture
        side = image_size // patch
        self.patch = patch
        self.num_patches = side**2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.pos_embed = _positions(encoder.width, side)
        self.patch_embed = PatchEmbed(image_size, patch, 3, encoder.width)
        # Not fused, since vmap over the weights does not support fused attention on a CPU.
        self.blocks = _blocks(encoder, fused=False)
        self.norm = _norm(encoder.width)

        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.decoder_pos_embed = _positions(decoder.width, side)
        self.decoder_blocks = _blocks(decoder)
        self.decoder_norm = _norm(decoder.width)
        self.decoder_pred = nn.Linear(decoder.width, 3 * patch**2)

        self.classifier_embed = nn.Linear(encoder.width, head.width)
        self.classifier_pos_embed = _positions(head.width, side)
        self.classifier_blocks = _blocks(head)
        self.classifier_norm = _norm(head.width)
        self.classifier_pred = nn.Linear(head.width, num_classes)

    def patchify(self, images: Tensor) -> Tensor:
        """Patches [N,L,P] of images [N,3,H,W], row by row; P runs over row, column, channel."""
        patches = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)

    def forward(self, patches: Tensor, indices: Tensor) -> Tensor:
        """Latents [N,1+V,D] of patches [N,V,P] at indices [N,V], the class token's first."""
        # A matrix product instead of the convolution, which needs whole images.
        weight = self.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
        tokens = F.linear(patches, weight, self.patch_embed.proj.bias)
        tokens = tokens + self.pos_embed[0, 1:][indices]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        return self.norm(self.blocks(torch.cat([first, tokens], 1)))

    def encode(self, images: Tensor) -> Tensor:
        """Latents [N,1+L,D] of whole images [N,3,H,W]."""
        indices = torch.arange(self.num_patches, device=images.device)
        return self(self.patchify(images), indices.expand(len(images), -1))

    def reconstruct(self, latents: Tensor, order: Tensor, mask_token: Tensor) -> Tensor:
        """Predict the hidden patches.

        Args:
            latents: of the visible patches, [N,1+V,D].
            order: indices of all patches [N,L], the visible ones first.
            mask_token: the input [1,1,D] or [N,1,D] in place of each hidden patch.

        Returns:
            Normalised values of the hidden patches [N,L-V,P], in their order.
        """
        num_latents = latents.shape[1]
        hidden = mask_token.expand(len(latents), 1 + order.shape[1] - num_latents, -1)
        tokens = torch.cat([self.decoder_embed(latents), hidden], 1)
        positions = F.pad(order + 1, (1, 0))  # the class token's position is 0
        tokens = self.decoder_blocks(tokens + self.decoder_pos_embed[0][positions])
        return self.decoder_pred(self.decoder_norm(tokens[:, num_latents:]))

    def classify(self, latents: Tensor) -> Tensor:
        """Logits [N,K] of the latents [N,1+L,D] of whole images."""
        tokens = self.classifier_embed(latents) + self.classifier_pos_embed
        return self.classifier_pred(self.classifier_norm(self.classifier_blocks(tokens)[:, 0]))


def take(patches: Tensor, indices: Tensor) -> Tensor:
    """The patches [B,...,P] of each image at its indices [B,...], out of patches [B,L,P]."""
    image = torch.arange(len(patches), device=patches.device)
    return patches[image.view(-1, *[1] * (indices.dim() - 1)), indices]


def normalized(patches: Tensor) -> Tensor:
    """Patches [...,P] scaled to mean 0 and variance 1 each, the targets of an MAE."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def pretraining_loss(net: MaeVit, images: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error, a scalar, of the normalised hidden patches of images [N,3,H,W].

    The mask of each image is sampled from `generator`, which is on the images' device.
    """
    patches = net.patchify(images)
    order = torch.rand(patches.shape[:2], generator=generator, device=images.device).argsort(1)
    visible, hidden = order.tensor_split([int(net.num_patches * (1 - MASK_RATIO))], 1)
    latents = net(take(patches, visible), visible)
    predictions = net.reconstruct(latents, order, net.mask_token)
    return (predictions - take(normalized(patches), hidden)).square().mean()


def initialize(net: MaeVit) -> None:
    """Initialise the weights for training from scratch, as the authors do."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(net.patch_embed.proj.weight.flatten(1))
    nn.init.normal_(net.cls_token, std=0.02)
    nn.init.normal_(net.mask_token, std=0.02)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def _blocks(tower: Tower, *, fused: bool = True) -> nn.Sequential:
    blocks = [Block(tower.width, tower.heads, qkv_bias=True, norm_layer=_norm)
              for _ in range(tower.depth)]
    if not fused:
        for block in blocks:
            block.attn.fused_attn = False
    return nn.Sequential(*blocks)


def _positions(width: int, side: int) -> nn.Parameter:
    """The fixed sinusoidal codes [1,1+side²,width] of column and row; 0 for the class token."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [side,width/2]
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, 0)
    codes = F.pad(torch.cat([columns, rows], 1), (0, 0, 1, 0))
    return nn.Parameter(codes[None].float(), requires_grad=False)
