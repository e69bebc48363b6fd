"""Grids: the features of a CLIP's image tower for each patch of an image.

A patch's feature is the output of the tower's head for that patch alone, so it lies in the joint
space of image and text like the feature of the whole image. Shapes: B images, h·w patches, D
features of the joint space, C channels of a layer.
"""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from tta_apm.errors import UserError

# Of open_clip's ResNet: the stem and four stages.
STAGES = 5


class Encoded(NamedTuple):
    """An image tower's outputs, from one pass."""

    features: Tensor  # [B,D], of the whole images
    grid: Tensor  # [B,h,w,D], of the patches
    tokens: Tensor | None  # [B,h',w',C], a layer's activations per patch; None if not requested


def encode(tower: Any, images: Tensor, layer: int | None = None) -> Encoded:
    """Features of images and of their patches.

    Args:
        tower: open_clip's ViT or ResNet, or a timm model in its wrapper.
        images: normalised [B,3,H,W].
        layer: index of the layer whose activations to return too: a block of a ViT, a stage of
            other networks; negative indices count from the end. None: no layer.

    Raises:
        UserError: for a tower without a grid of patches, or without that layer.
    """
    if isinstance(tower, VisionTransformer) and tower.attn_pool is None:
        return _of_vit(tower, images, layer)
    if isinstance(tower, ModifiedResNet):
        return _of_resnet(tower, images, layer)
    if (isinstance(tower, TimmModel) and hasattr(tower.trunk, "forward_intermediates")
            and not hasattr(tower.head, "pool")):
        return _of_timm(tower, images, layer)
    raise UserError("the image tower of this CLIP.MODEL has no grid of features (its head pools by "
                    "attention): use another teacher, or no grid loss and no trigger vit")


def _of_vit(tower: VisionTransformer, images: Tensor, layer: int | None) -> Encoded:
    features, final, tokens = _pass(tower, images, len(tower.transformer.resblocks) - 1, layer)
    return Encoded(features, tower.ln_post(final) @ tower.proj, tokens)


def _of_resnet(tower: ModifiedResNet, images: Tensor, layer: int | None) -> Encoded:
    """A patch's feature is the output of the attention pooling if it attends to that patch only."""
    features, final, tokens = _pass(tower, images, STAGES - 1, layer)
    pool = tower.attnpool
    code = pool.positional_embedding[1:].unflatten(0, final.shape[1:3])
    return Encoded(features, pool.c_proj(pool.v_proj(final + code)), tokens)


def _pass(tower: VisionTransformer | ModifiedResNet, images: Tensor, last: int,
          layer: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Image features [B,D], the last layer's activations [B,h,w,C] and those of `layer`."""
    if layer is not None and not -last - 1 <= layer <= last:
        raise _no_layer(layer)
    index = last if layer is None else layer % (last + 1)
    output = tower.forward_intermediates(images, indices=sorted({index, last}))
    between = [one.permute(0, 2, 3, 1) for one in output["image_intermediates"]]
    return output["image_features"], between[-1], None if layer is None else between[0]


def _of_timm(tower: TimmModel, images: Tensor, layer: int | None) -> Encoded:
    trunk, tokens = tower.trunk, None
    if layer is None:
        final = trunk.forward_features(images)
    else:
        try:
            final, (tokens,) = trunk.forward_intermediates(images, indices=[layer])
        except AssertionError as error:
            raise _no_layer(layer) from error
        tokens = tokens.permute(0, 2, 3, 1)
    features = tower.head(trunk.forward_head(final))
    sides, alone = _alone(trunk, final)
    grid = tower.head(trunk.forward_head(alone)).unflatten(0, (len(images), *sides))
    return Encoded(features, grid, tokens)


def _alone(trunk: Any, final: Tensor) -> tuple[tuple[int, int], Tensor]:
    """The grid's sides (h, w), and the last activations of B·h·w images of one patch each."""
    if final.dim() == 3:  # tokens [B, prefix + h·w, C]; prefix tokens are replaced by the patch too
        prefix = getattr(trunk, "num_prefix_tokens", 0)
        tokens = final[:, prefix:]
        side = isqrt(tokens.shape[1])
        sides = (side, tokens.shape[1] // side)
        return sides, tokens.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        return (final.shape[1], final.shape[2]), final.flatten(0, 2)[:, None, None]
    height, width = final.shape[-2:]
    return (height, width), final.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]


def _no_layer(layer: int) -> UserError:
    return UserError(f"the image tower of this CLIP.MODEL has no layer {layer}: blocks of a ViT "
                     "and stages of other networks are counted from 0, or from -1 backwards")
