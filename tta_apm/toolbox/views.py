"""Views: random crops of a batch of images, computed on the images' device.

The random numbers for an image come from its own generator on the CPU (see
episodes.image_generators), so its views depend neither on its neighbours nor on the device.
Shapes: B images, V views per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Generators = Sequence[torch.Generator]

# torchvision's RandomResizedCrop: width / height of a crop, and how often it tries to fit one.
RATIO = (3 / 4, 4 / 3)
TRIES = 10


def crop_views(images: Tensor, num_views: int, generators: Generators, *, size: int | None = None,
               scale: tuple[float, float] = (0.08, 1.0), flip: bool = True) -> Tensor:
    """Random crops, resized and flipped, as torchvision's RandomResizedCrop makes them.

    Args:
        images: [B,3,H,W].
        num_views: V.
        generators: one per image.
        size: side of the views in pixels; None keeps the images' height and width.
        scale: range of a crop's area as a fraction of the image's.
        flip: mirror each view with probability 1/2.

    Returns:
        Views [B,V,3,size,size].
    """
    height, width = images.shape[-2:]
    numbers = uniform(generators, num_views, 4 * TRIES + 1)
    boxes = _fitting_boxes(numbers[..., :-1].unflatten(-1, (TRIES, 4)), height, width, scale)
    views = crop_resize(images, boxes.to(images.device), size or height, size or width)
    return _mirror(views, numbers[..., -1] < 0.5) if flip else views


def _fitting_boxes(numbers: Tensor, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    """Random boxes [B,V,4] for crop_resize, from random `numbers` [B,V,TRIES,4] in [0,1).

    A view gets the first of its TRIES boxes that fits into the image. If none fits, it gets the
    largest central box whose ratio is in RATIO.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[..., 0])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = (low + (high - low) * numbers[..., 1]).exp()
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    tops = (numbers[..., 2] * (height - heights + 1)).floor()
    lefts = (numbers[..., 3] * (width - widths + 1)).floor()
    tried = torch.stack([tops, lefts, heights, widths], -1)  # [B,V,TRIES,4]
    fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
    first = fits.int().argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
    central_height = min(height, round(width / RATIO[0]))
    central_width = min(width, round(height * RATIO[1]))
    central = tried.new_tensor([(height - central_height) // 2, (width - central_width) // 2,
                                central_height, central_width])
    return torch.where(fits.any(-1, keepdim=True), tried.gather(2, first).squeeze(2), central)


def crop_resize(images: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Cut boxes out of images and resize each, bilinearly and antialiased.

    Args:
        images: [B,3,H,W].
        boxes: integers [B,V,4] on the images' device: top, left, height and width in pixels.
        height, width: of the results, in pixels.

    Returns:
        Crops [B,V,3,height,width].
    """
    top, left, box_height, box_width = boxes.unbind(-1)
    rows = _resizing(images.shape[-2], height, top, box_height).to(images.dtype)
    columns = _resizing(images.shape[-1], width, left, box_width).to(images.dtype)
    lines = torch.einsum("bvyh,bchw->bvcyw", rows, images)
    return torch.einsum("bvcyw,bvxw->bvcyx", lines, columns)


def _resizing(length: int, size: int, start: Tensor, extent: Tensor) -> Tensor:
    """Matrices [B,V,size,length] that resize pixels `start` to `start + extent` of a line to `size`
    pixels.

    Each row holds triangular weights around the input position of its output pixel. The triangle
    is wider if the box is larger than the output.
    """
    start, extent = start[..., None, None], extent[..., None, None]
    step = extent / size
    pixel = torch.arange(length, device=start.device) - start + 0.5
    centre = step * (torch.arange(size, device=start.device)[:, None] + 0.5)
    weights = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > 0) & (pixel < extent))
    return weights / weights.sum(-1, keepdim=True)


def pad_crop_views(images: Tensor, num_views: int, generators: Generators, *, padding: int = 4,
                   flip: bool = True) -> Tensor:
    """Random crops of the images' size from the zero-padded images, CIFAR's usual augmentation.

    Args:
        images: [B,3,H,W].
        num_views: V.
        generators: one per image.
        padding: zeros at each edge, in pixels.
        flip: mirror each view with probability 1/2.

    Returns:
        Views [B,V,3,H,W].
    """
    numbers = uniform(generators, num_views, 3)
    corners = (numbers[..., :2] * (2 * padding + 1)).long().movedim(-1, 0).to(images.device)
    mirrored = (numbers[..., 2] < 0.5).to(images.device) if flip else None
    return crops(F.pad(images, [padding] * 4), corners, images.shape[-2:], mirrored)


def crops(images: Tensor, corners: Tensor, size: Sequence[int], mirrored: Tensor | None) -> Tensor:
    """Cut crops of one size out of images.

    Args:
        images: [B,3,H,W].
        corners: the crops' first rows and first columns, int64 [2,B,V].
        size: (h, w) of the crops, in pixels.
        mirrored: whether each crop is mirrored left to right, bool [B,V]; None for none.

    Returns:
        Crops [B,V,3,h,w].
    """
    (height, width), device = size, images.device
    rows = corners[0, ..., None] + torch.arange(height, device=device)  # [B,V,h]
    columns = corners[1, ..., None] + torch.arange(width, device=device)  # [B,V,w]
    if mirrored is not None:
        columns = torch.where(mirrored[..., None], columns.flip(-1), columns)
    image = torch.arange(len(images), device=device)[:, None, None, None]
    return images[image, :, rows[..., None], columns[..., None, :]].movedim(-1, 2)


def _mirror(views: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the `chosen` views, bool [B,V], left to right."""
    return torch.where(chosen[..., None, None, None].to(views.device), views.flip(-1), views)


def uniform(generators: Generators, *shape: int) -> Tensor:
    """Random numbers in [0,1), `shape` of them from each generator: [B,*shape], on the CPU."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])
