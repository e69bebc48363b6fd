"""View features: a CLIP's image features of random views, which rows with the same views share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.sharing import once_per_batch
from tta_apm.toolbox.augmix import augmix
from tta_apm.toolbox.episodes import image_generators
from tta_apm.toolbox.precision import computing_in
from tta_apm.toolbox.views import crop_views


class Views(NamedTuple):
    """The specification of a set of views: random crops of the network's image size.

    Args:
        num_views: V.
        flip: mirror each view with probability 1/2.
        augmix: mix three chains of AugMix's operations into each view.
        seed: of the views; their random numbers depend on it and on the image's pixels only.
    """

    num_views: int
    flip: bool
    augmix: bool
    seed: int


@once_per_batch
def view_features(clip: ClipBackbone, images: Tensor, views: Views, precision: str) -> Tensor:
    """Image features [B,V,D], not normalised, of views of images [B,3,H,W] in [0,1].

    Args:
        precision: dtype of the tower's products, see `precision.computing_in`.
    """
    generators = image_generators(images, views.seed)
    crops = crop_views(images, views.num_views, generators, size=clip.image_size, flip=views.flip)
    if views.augmix:
        crops = augmix(crops, generators)
    # One image at a time: its views are enough work for a GPU, and the views of a whole chunk
    # might not fit into memory.
    return torch.stack([encode(clip, of_image, precision) for of_image in crops])


def encode(clip: ClipBackbone, images: Tensor, precision: str) -> Tensor:
    """Image features [B,D], in the dtype of the images, of images [B,3,H,W] in [0,1]."""
    with computing_in(precision, images.device):
        return clip.encode_image(images).to(images.dtype)
