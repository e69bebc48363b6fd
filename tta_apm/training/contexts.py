"""Contexts: train the contexts of CoOp and CoCoOp for the small CLIPs.

A context fits one CLIP only: train it again after that CLIP was trained again.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tta_apm.atomic import atomic_write
from tta_apm.backbones.build import build
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.clip_prompts import Context, ContextPrompts, cosine_logits, phrase_context
from tta_apm.progress import bar
from tta_apm.training.recipes import ContextRecipe

SHOTS = 16  # images per class
PHRASE = "a photo of a"  # the initial context: the authors' "ctxv1"

# As in both papers: SGD, a cosine schedule, and a first epoch at a constant rate.
LR = 2e-3
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
FIRST_LR = 1e-5


def make(recipe: ContextRecipe, data_dir: str, file: Path) -> None:
    """Train a context, write it and print its test accuracy."""
    torch.manual_seed(recipe.seed)
    data, test = recipe.data.train(data_dir), recipe.data.test(data_dir)
    backbone = build("clip", recipe.model, recipe.weights, class_names=data.class_names,
                     templates=(PHRASE + " {}.",), device="cpu")
    assert isinstance(backbone, ClipBackbone)
    shots = few_shots(data.labels, recipe.seed)
    context = Context(phrase_context(backbone, PHRASE),
                      backbone.text_features.shape[1] if recipe.meta_net else None)
    train(context, backbone, image_features(backbone, data.pixels[shots]),
          torch.from_numpy(data.labels[shots]), epochs=recipe.epochs,
          batch_size=recipe.batch_size, seed=recipe.seed)
    atomic_write(file, to_safetensors(context.state_dict()))
    with torch.no_grad():
        predictions = classify(context, ContextPrompts(backbone, len(context.ctx)), backbone,
                               image_features(backbone, test.pixels)).argmax(1).numpy()
    print(f"{file.name}: {(predictions == test.labels).mean():.2%} of {len(test.labels)} right")


def train(context: Context, backbone: ClipBackbone, features: Tensor, labels: Tensor, *,
          epochs: int, batch_size: int, seed: int = 0) -> None:
    """Train `context` by cross-entropy to classify image features [N,D] of length one.

    The authors train on random crops; here the image features are computed once.
    """
    prompts = ContextPrompts(backbone, len(context.ctx))
    optimizer = torch.optim.SGD(context.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: (1 + math.cos(math.pi * epoch / epochs)) / 2 if epoch
        else FIRST_LR / LR)
    generator = torch.Generator().manual_seed(seed)
    shown = bar(epochs, "epoch")
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator).split(batch_size):
            optimizer.zero_grad()
            logits = classify(context, prompts, backbone, features[chosen])
            F.cross_entropy(logits, labels[chosen]).backward()
            optimizer.step()
        schedule.step()
        shown.update()
    shown.close()


def classify(context: Context, prompts: ContextPrompts, backbone: ClipBackbone, features: Tensor
             ) -> Tensor:
    """Logits [B,K] of image features [B,D] of length one."""
    # Without a meta-net the context is the same for all images.
    some = features if context.meta_net is not None else features[:1]
    return cosine_logits(backbone, features[:, None], prompts(context(some)))[:, 0]


def few_shots(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Positions of SHOTS images of each class."""
    order = np.random.RandomState(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:SHOTS] for label in np.unique(labels)])


@torch.no_grad()
def image_features(backbone: ClipBackbone, pixels: np.ndarray) -> Tensor:
    """Image features [N,D] of length one, of pixels uint8 [N,H,W,3]."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return F.normalize(backbone.encode_image(images), dim=-1)
