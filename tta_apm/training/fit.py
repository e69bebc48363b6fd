"""fit: the training loop of the small backbones, and how it shifts images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.data.dataset import Clean
from tta_apm.progress import bar
from tta_apm.toolbox.views import crops
from tta_apm.training.recipes import BackboneRecipe

BATCH_SIZE = 64
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # of all steps


class Pixels(NamedTuple):
    """Images to train on, and the normalisation of the network."""

    images: Clean
    mean: Sequence[float]
    std: Sequence[float]


def fit(net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], recipe: BackboneRecipe,
        data: Pixels, augment: Callable[[Tensor], Tensor] | None = None) -> None:
    """Minimise `loss`, of a batch of images and labels, for the epochs of a recipe."""
    device = next(net.parameters()).device
    pixels = torch.from_numpy(data.images.pixels).permute(0, 3, 1, 2).to(device)
    labels = torch.from_numpy(data.images.labels).to(device)
    centre = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
    spread = torch.tensor(data.std, device=device).view(1, 3, 1, 1)
    optimizer = torch.optim.AdamW(_decay_matrices(net), recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.epochs * math.ceil(len(labels) / BATCH_SIZE),
        pct_start=WARM_UP, cycle_momentum=False)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    augment = augment or partial(shift, generator=generator, max_shift=recipe.data.max_shift,
                                 flip=recipe.data.flip)
    net.train()
    shown = bar(recipe.epochs, "epoch")
    for _ in range(recipe.epochs):
        order = torch.randperm(len(labels), generator=generator, device=device)
        for chosen in order.split(BATCH_SIZE):
            images = (augment(pixels[chosen] / 255) - centre) / spread
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.data.autocast):
                value = loss(images, labels[chosen])
            value.backward()
            optimizer.step()
            schedule.step()
        shown.update()
    shown.close()
    net.eval()


def _decay_matrices(net: nn.Module) -> list[dict]:
    """Parameter groups: weight decay for matrices and filters, none for biases and scales."""
    parameters = list(net.parameters())
    return [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]


def shift(images: Tensor, generator: torch.Generator, *, max_shift: int, flip: bool) -> Tensor:
    """Shift each image of [B,3,H,W] by up to `max_shift` pixels in either direction, with edges
    repeated; mirror each with probability 1/2 if `flip`."""
    count, device = len(images), images.device
    corners = torch.randint(2 * max_shift + 1, (2, count, 1), generator=generator, device=device)
    mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5 if flip else None
    padded = F.pad(images, [max_shift] * 4, mode="replicate")
    return crops(padded, corners, images.shape[-2:], mirrored).squeeze(1)
