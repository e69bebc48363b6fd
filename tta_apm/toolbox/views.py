"""Views: random crops and AugMix of a batch of images, made on the images' device.

What is drawn for an image comes from its own generator (see episodes.image_generators), on the
CPU; so the views of an image depend neither on its neighbours nor on the device.
Shapes: B images, V views of each, N views or chains of any images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Generators = Sequence[torch.Generator]

# torchvision's RandomResizedCrop: width / height of a crop, and how often it tries to fit one.
RATIO = (3 / 4, 4 / 3)
TRIES = 10

# AugMix (Hendrycks et al., ICLR 2020) at severity 1 of 10, the one that TPT and MEMO use.
CHAINS = 3
MAX_DEPTH = 3
LEVEL = (0.01, 0.1)  # range of an operation's strength as a fraction of its strongest
BLACK = (0, 0, 0)


def crop_views(images: Tensor, num_views: int, generators: Generators, *, size: int | None = None,
               scale: tuple[float, float] = (0.08, 1.0), flip: bool = True) -> Tensor:
    """Random crops of any area, resized and flipped: torchvision's RandomResizedCrop.

    Args:
        images: [B,3,H,W].
        num_views: V.
        generators: one per image.
        size: side of the views; None is the images' own height and width.
        scale: range of a crop's area as a fraction of the image's.
        flip: mirror each view with probability 1/2.

    Returns:
        [B,V,3,size,size].
    """
    height, width = images.shape[-2:]
    draws = _uniform(generators, num_views, 4 * TRIES + 1)
    boxes = _fitting_boxes(draws[..., :-1].unflatten(-1, (TRIES, 4)), height, width, scale)
    views = crop_resize(images, boxes.to(images.device), size or height, size or width)
    return _mirror(views, draws[..., -1] < 0.5) if flip else views


def _fitting_boxes(draws: Tensor, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    """Boxes [B,V,4] as crop_resize takes them, from uniform draws [B,V,TRIES,4].

    The first try that fits into the image counts; if none does, the largest central box of an
    admissible ratio.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = (low + (high - low) * draws[..., 1]).exp()
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    tops = (draws[..., 2] * (height - heights + 1)).floor()
    lefts = (draws[..., 3] * (width - widths + 1)).floor()
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
        boxes: whole numbers [B,V,4] on the images' device: top, left, height and width in pixels.
        height, width: of the results.

    Returns:
        [B,V,3,height,width].
    """
    top, left, box_height, box_width = boxes.unbind(-1)
    rows = _resizing(images.shape[-2], height, top, box_height).to(images.dtype)
    columns = _resizing(images.shape[-1], width, left, box_width).to(images.dtype)
    lines = torch.einsum("bvyh,bchw->bvcyw", rows, images)
    return torch.einsum("bvcyw,bvxw->bvcyx", lines, columns)


def _resizing(length: int, size: int, start: Tensor, extent: Tensor) -> Tensor:
    """Matrices [B,V,size,length] that resize pixels start to start + extent of a line to `size`.

    A row holds a triangle of weights about the point that its output pixel comes from, wider
    where the box is larger than the output.
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
    """Random crops of the images' own size out of the zero-padded images, as CIFAR is augmented.

    Args:
        images: [B,3,H,W].
        num_views: V.
        generators: one per image.
        padding: zeros at each edge, in pixels.
        flip: mirror each view with probability 1/2.

    Returns:
        [B,V,3,H,W].
    """
    draws = _uniform(generators, num_views, 3)
    corners = (draws[..., :2] * (2 * padding + 1)).long().movedim(-1, 0).to(images.device)
    mirrored = (draws[..., 2] < 0.5).to(images.device) if flip else None
    return crops(F.pad(images, [padding] * 4), corners, images.shape[-2:], mirrored)


def crops(images: Tensor, corners: Tensor, size: Sequence[int], mirrored: Tensor | None) -> Tensor:
    """Crops of one size out of images.

    Args:
        images: [B,3,H,W].
        corners: the crops' first rows and columns, int64 [2,B,V].
        size: of the crops, (h, w).
        mirrored: which are mirrored left to right, bool [B,V]; None for none.

    Returns:
        [B,V,3,h,w].
    """
    (height, width), device = size, images.device
    rows = corners[0, ..., None] + torch.arange(height, device=device)  # [B,V,h]
    columns = corners[1, ..., None] + torch.arange(width, device=device)  # [B,V,w]
    if mirrored is not None:
        columns = torch.where(mirrored[..., None], columns.flip(-1), columns)
    image = torch.arange(len(images), device=device)[:, None, None, None]
    return images[image, :, rows[..., None], columns[..., None, :]].movedim(-1, 2)


def _mirror(views: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen[..., None, None, None].to(views.device), views.flip(-1), views)


def _uniform(generators: Generators, *shape: int) -> Tensor:
    """Draws in [0,1) of `shape` from each generator, [B,*shape], on the CPU."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


def augmix(views: Tensor, generators: Generators, *, fill: Sequence[int] = BLACK) -> Tensor:
    """AugMix of each view: a random mixture of it and of three chains of simple operations.

    As Hendrycks et al. (ICLR 2020) at severity 1: each chain applies one to three of nine
    operations to the view in 8 bits; the chains are weighed by Dirichlet(1,1,1), their sum and
    the view by Beta(1,1).

    Args:
        views: [B,V,3,H,W] in [0,1].
        generators: one per image.
        fill: colour, 0 to 255, of what moves in from outside of the image. MEMO's code fills
            with (128, 0, 0), which is what Pillow makes of the number 128.

    Returns:
        [B,V,3,H,W] in [0,1].
    """
    draws = _uniform(generators, views.shape[1], CHAINS * (2 + 3 * MAX_DEPTH) + 1)
    draws = draws.to(views.device)
    share, chains = draws[..., -1], draws[..., :-1].unflatten(-1, (CHAINS, -1))
    depth = (1 + (chains[..., 0] * MAX_DEPTH).long()).flatten()
    operations = chains[..., 2:].unflatten(-1, (MAX_DEPTH, 3)).flatten(0, 2)  # [N,MAX_DEPTH,3]
    pixels = (views * 255).round()[:, :, None].repeat(1, 1, CHAINS, 1, 1, 1).flatten(0, 2)
    colour = pixels.new_tensor(fill).view(3, 1, 1)
    for step in range(MAX_DEPTH):
        choice, strength, sign = operations[:, step].unbind(-1)
        _operate(pixels, depth > step, choice, strength, sign, colour)
    augmented = (pixels / 255).view(*draws.shape[:2], CHAINS, *views.shape[2:])
    exponential = -(1 - chains[..., 1]).log()  # scaled to a sum of one it is Dirichlet(1,1,1)
    weights = exponential / exponential.sum(-1, keepdim=True)
    mixture = torch.einsum("bvk,bvkchw->bvchw", weights, augmented)
    return mixture.lerp(views, share[..., None, None, None])


def _operate(pixels: Tensor, active: Tensor, choice: Tensor, strength: Tensor, sign: Tensor,
             fill: Tensor) -> None:
    """Apply one operation each, in place, to the chains that are `active` [N].

    Args:
        pixels: [N,3,H,W], whole numbers from 0 to 255.
        choice, strength, sign: uniform draws [N]: which operation, how strong, which way.
        fill: [3,1,1].
    """
    which = torch.where(active, choice * (len(COLOUR) + len(GEOMETRY)), -1.0).floor()
    level = LEVEL[0] + (LEVEL[1] - LEVEL[0]) * strength
    for index, operation in enumerate(COLOUR):
        chosen = (which == index).nonzero().squeeze(-1)
        if len(chosen):
            pixels[chosen] = operation(pixels[chosen], level[chosen])
    moved = (which >= len(COLOUR)).nonzero().squeeze(-1)
    if len(moved):
        kind = (which[moved] - len(COLOUR)).long()
        way = torch.where(sign[moved] < 0.5, -1.0, 1.0)
        matrices = torch.stack([operation(level[moved], way, *pixels.shape[-2:])
                                for operation in GEOMETRY])  # [5,N,2,3]
        matrix = matrices[kind, torch.arange(len(kind), device=kind.device)]
        pixels[moved] = warp(pixels[moved], matrix, fill)


# The operations do what Pillow's functions of these names do.
# COLOUR: pixels [N,3,H,W] in 0 to 255 and level [N] in [0,1] to pixels.

def autocontrast(pixels: Tensor, level: Tensor) -> Tensor:
    """Stretch each channel to 0 to 255."""
    lowest, highest = pixels.amin((-2, -1), keepdim=True), pixels.amax((-2, -1), keepdim=True)
    stretched = ((pixels - lowest) * 255 / (highest - lowest).clamp(min=1)).floor()
    return torch.where(highest > lowest, stretched, pixels)


def equalize(pixels: Tensor, level: Tensor) -> Tensor:
    """Give each channel a flat histogram."""
    flat = pixels.flatten(0, 1).flatten(1).long()  # [3N,HW]
    histogram = flat.new_zeros(len(flat), 256).scatter_add_(1, flat, torch.ones_like(flat))
    brightest = histogram.gather(1, flat.amax(1, keepdim=True))
    step = (flat.shape[1] - brightest) // 255  # pixels per grey level
    below = histogram.cumsum(1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(1, flat), flat).view_as(pixels).to(pixels)


def posterize(pixels: Tensor, level: Tensor) -> Tensor:
    """Keep the upper 4 bits, fewer at high levels."""
    step = 2 ** (4 + (level * 4).floor())[:, None, None, None]
    return pixels.div(step, rounding_mode="floor") * step


def solarize(pixels: Tensor, level: Tensor) -> Tensor:
    """Invert what is brighter than a threshold."""
    threshold = 256 - (level * 256).floor()[:, None, None, None]
    return torch.where(pixels < threshold, pixels, 255 - pixels)


# GEOMETRY: level [N], direction [N] of ±1 and the image's size to matrices [N,2,3] for warp.

def rotate(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Up to 30 whole degrees about the middle."""
    angle = (level * 30).floor() * direction * (math.pi / 180)
    cosine, sine, x, y = angle.cos(), angle.sin(), width / 2, height / 2
    return _matrix(cosine, -sine, x - x * cosine + y * sine,
                   sine, cosine, y - x * sine - y * cosine)


def shear_x(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Up to 0.3 pixels per line."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, 0.3 * level * direction, zero, zero, zero + 1, zero)


def shear_y(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Up to 0.3 pixels per column."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, zero, zero, 0.3 * level * direction, zero + 1, zero)


def translate_x(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Up to a third of the width, in whole pixels."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, zero, (level * width / 3).floor() * direction, zero, zero + 1, zero)


def translate_y(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Up to a third of the height, in whole pixels."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, zero, zero, zero, zero + 1, (level * height / 3).floor() * direction)


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, -1).unflatten(-1, (2, 3))


def warp(pixels: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Affine transform, bilinear: output (x, y) shows what is at matrix · (x, y, 1).

    Positions are in pixels, their middles at .5.

    Args:
        pixels: [N,3,H,W] in 0 to 255.
        matrix: [N,2,3].
        fill: [3,1,1], shown where the position is outside of the image.
    """
    height, width = pixels.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=pixels.device) + 0.5,
                          torch.arange(width, device=pixels.device) + 0.5, indexing="ij")
    positions = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3) @ matrix.mT  # [N,HW,2]
    size = positions.new_tensor([width, height])
    grid = (positions * 2 / size - 1).view(-1, height, width, 2)
    warped = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    inside = ((positions >= 0) & (positions < size)).all(-1).view(-1, 1, height, width)
    # Pillow cuts fractions off; a thousandth keeps a whole number that came out just below.
    return torch.where(inside, (warped + 1e-3).floor(), fill)


COLOUR: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    autocontrast, equalize, posterize, solarize)
GEOMETRY: tuple[Callable[[Tensor, Tensor, int, int], Tensor], ...] = (
    rotate, shear_x, shear_y, translate_x, translate_y)
