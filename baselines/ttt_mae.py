"""TTT-MAE: test-time training with a masked autoencoder."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.func import functional_call, vmap

from tta_apm.backbones.mae import MaskedAutoencoder
from tta_apm.backbones.mae_vit import normalized, take
from tta_apm.errors import UserError, at_least, between
from tta_apm.method import Method
from tta_apm.toolbox.episodes import Parameters, adapt, chunk_size, chunks, image_generators, stack
from tta_apm.toolbox.surviving import SurvivingOptimizer

# Prefixes of the parameters that are not trained: decoder, probing head and positional codes. The
# mask token is an input of the decoder, but it is trained.
FROZEN = ("decoder", "classifier", "pos_embed")


class TttMae(Method):
    """Test-time training with masked autoencoders (Gandelsman et al., NeurIPS 2022).

    For each image alone: starting from the source's weights and an empty optimiser, train encoder,
    class token and mask token to reconstruct the hidden patches of the image under many random
    masks, with new masks at each step; after the last update, classify the whole image with the
    frozen probing head. With `steps=0` it is the un-adapted probe. No state is carried from one
    image to the next, and images adapted together do not influence one another.

    As in the authors' code but not in their paper, there is no weight decay and the decoder is
    frozen. Departures from their code: the image is used as the data set returns it (they resize
    ImageNet-C's to 256 pixels and crop 224), and the masks are keyed by the image's pixels.

    Args:
        backbone: a masked autoencoder with its probing head.
        steps: updates of SGD per image.
        masks: random masks per step.
        mask_ratio: fraction of the patches that is hidden.
        lr: learning rate; the authors' is 1e-2 · masks / 256.
        momentum: of SGD.
        seed: of the masks, together with the image's pixels.

    Raises:
        UserError: for values out of range.
    """

    needs = "mae"
    scope = "image"

    def __init__(self, backbone: MaskedAutoencoder, *, steps: int = 20, masks: int = 128,
                 mask_ratio: float = 0.75, lr: float = 5e-3, momentum: float = 0.9,
                 seed: int = 42) -> None:
        super().__init__()
        at_least(0, "ttt_mae", steps=steps, lr=lr, momentum=momentum)
        at_least(1, "ttt_mae", masks=masks)
        between(0, 1, "ttt_mae", mask_ratio=mask_ratio)
        self.num_patches = backbone.net.num_patches
        self.num_visible = int(self.num_patches * (1 - mask_ratio))
        if not 0 < self.num_visible < self.num_patches:
            raise UserError(f"ttt_mae: mask_ratio {mask_ratio} leaves {self.num_visible} of "
                            f"{self.num_patches} patches visible; some must be and some not")
        self.backbone = backbone
        self.steps = steps
        self.masks = masks
        self.lr = lr
        self.momentum = momentum
        self.seed = seed
        self.initial = {name: parameter for name, parameter in backbone.net.named_parameters()
                        if not name.startswith(FROZEN)}
        self.chunk = chunk_size(self._bytes_per_episode(), backbone.mean.device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1], each from its own adapted encoder."""
        return torch.cat([self._adapt(images[part])
                          for part in chunks(len(images), self.chunk)])

    def reset(self) -> None:
        """Do nothing: every image starts from the source's weights and an empty optimiser."""

    def _adapt(self, images: Tensor) -> Tensor:
        net = self.backbone.net
        patches = net.patchify(self.backbone.prepare(images))
        generators = image_generators(images, self.seed)
        weights = adapt(
            stack(self.initial, len(images)),
            lambda stacked: self.loss(stacked, patches, self.sample_masks(generators)),
            steps=self.steps,
            optimizer=self.make_optimizer)
        num_masked = len(images) * self.steps * self.masks
        self.did.update(forwards=num_masked + len(images), backwards=num_masked)
        all_patches = torch.arange(self.num_patches, device=images.device).expand(
            len(images), 1, self.num_patches)
        return self.backbone.classify(self._encode(weights, patches, all_patches).flatten(0, 1))

    def make_optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """A new SGD, its momentum still empty, for the encoders of a chunk of images."""
        return torch.optim.SGD(leaves, lr=self.lr, momentum=self.momentum)

    def sample_masks(self, generators: list[Generator]) -> Tensor:
        """Random orders of the patches, int64 [B,masks,L]; the first `num_visible` are visible."""
        noise = torch.stack([torch.rand(self.masks, self.num_patches, generator=generator)
                             for generator in generators])
        # A stable sort, so that ties are broken alike on every device.
        return noise.to(self.backbone.mean.device).argsort(dim=-1, stable=True)

    def loss(self, weights: Parameters, patches: Tensor, order: Tensor) -> Tensor:
        """Mean squared error [B] of the hidden patches, each normalised by its mean and variance.

        Args:
            weights: stacked weights of B episodes.
            patches: the patches [B,L,P] of each episode's image.
            order: the order [B,N,L] of the patches under each of N masks, visible ones first.
        """
        visible, hidden = order.tensor_split([self.num_visible], -1)
        latents = self._encode(weights, patches, visible)
        mask_tokens = weights["mask_token"].squeeze(1).repeat_interleave(order.shape[1], 0)
        predictions = self.backbone.net.reconstruct(
            latents.flatten(0, 1), order.flatten(0, 1), mask_tokens)
        target = take(normalized(patches), hidden)
        return (predictions.view_as(target) - target).square().mean((1, 2, 3))

    def _encode(self, weights: Parameters, patches: Tensor, positions: Tensor) -> Tensor:
        """Latents [B,N,1+V,D] of the patches at positions [B,N,V] out of patches [B,L,P]."""
        def one(weights: Parameters, patches: Tensor, positions: Tensor) -> Tensor:
            return functional_call(self.backbone.net, weights, (patches, positions))
        chosen = take(patches, positions)
        if len(patches) == 1:  # vmap's overhead is a quarter of the time of large nets on a CPU
            return one({name: value.squeeze(0) for name, value in weights.items()}, chosen[0],
                       positions[0])[None]
        return vmap(one)(weights, chosen, positions)

    def _bytes_per_episode(self) -> int:
        """Memory of one image: weights, gradients, momentum, and the blocks' activations, which
        are 16 numbers per token and channel."""
        net = self.backbone.net
        towers = ((net.blocks, 1 + self.num_visible, net.norm),
                  (net.decoder_blocks, 1 + self.num_patches, net.decoder_norm))
        activations = sum(16 * len(blocks) * num_tokens * norm.weight.numel()
                          for blocks, num_tokens, norm in towers)
        weights = sum(value.numel() for value in self.initial.values())
        return (3 * weights + self.masks * activations) * net.mask_token.element_size()


class TttMaeSurviving(SurvivingOptimizer, TttMae):
    """TTT-MAE whose momentum survives from image to image, for the audit only."""
