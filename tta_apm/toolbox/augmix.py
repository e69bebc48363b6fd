"""AugMix of the views of a batch of images, computed on the images' device.

The random numbers for an image come from its own generator, as in views.py.
Shapes: B images, V views per image, N views or chains over all images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.toolbox.views import Generators, uniform

# AugMix (Hendrycks et al., ICLR 2020) at severity 1 of 10, as in TPT and MEMO.
CHAINS = 3
MAX_DEPTH = 3
LEVEL = (0.01, 0.1)  # range of an operation's strength, as a fraction of its maximum
BLACK = (0, 0, 0)


def augmix(views: Tensor, generators: Generators, *, fill: Sequence[int] = BLACK) -> Tensor:
    """AugMix of each view: a random mixture of the view and of three chains of operations.

    As in Hendrycks et al. (ICLR 2020) at severity 1: each chain applies one to three of nine
    operations to the 8-bit view; Dirichlet(1,1,1) gives the chains' weights in their sum, and
    Beta(1,1) the weights of that sum and the view.

    Args:
        views: [B,V,3,H,W] in [0,1].
        generators: one per image.
        fill: colour, 0 to 255, of pixels from outside of the image. MEMO's code passes Pillow the
            number 128, which it reads as (128, 0, 0).

    Returns:
        Views [B,V,3,H,W] in [0,1].
    """
    numbers = uniform(generators, views.shape[1], CHAINS * (2 + 3 * MAX_DEPTH) + 1)
    numbers = numbers.to(views.device)
    share, chains = numbers[..., -1], numbers[..., :-1].unflatten(-1, (CHAINS, -1))
    depth = (1 + (chains[..., 0] * MAX_DEPTH).long()).flatten()
    operations = chains[..., 2:].unflatten(-1, (MAX_DEPTH, 3)).flatten(0, 2)  # [N,MAX_DEPTH,3]
    pixels = (views * 255).round()[:, :, None].repeat(1, 1, CHAINS, 1, 1, 1).flatten(0, 2)
    colour = pixels.new_tensor(fill).view(3, 1, 1)
    for step in range(MAX_DEPTH):
        choice, strength, sign = operations[:, step].unbind(-1)
        _operate(pixels, depth > step, choice, strength, sign, colour)
    augmented = (pixels / 255).view(*numbers.shape[:2], CHAINS, *views.shape[2:])
    exponential = -(1 - chains[..., 1]).log()  # normalised to a sum of 1: Dirichlet(1,1,1)
    weights = exponential / exponential.sum(-1, keepdim=True)
    mixture = torch.einsum("bvk,bvkchw->bvchw", weights, augmented)
    return mixture.lerp(views, share[..., None, None, None])


def _operate(pixels: Tensor, active: Tensor, choice: Tensor, strength: Tensor, sign: Tensor,
             fill: Tensor) -> None:
    """Apply one operation, in place, to each of the chains that are `active` [N].

    Args:
        pixels: [N,3,H,W], integers from 0 to 255.
        choice, strength, sign: random numbers [N] in [0,1) that determine the operation, its
            strength and its direction.
        fill: colour [3,1,1] of pixels from outside of the image.
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
        direction = torch.where(sign[moved] < 0.5, -1.0, 1.0)
        matrices = torch.stack([operation(level[moved], direction, *pixels.shape[-2:])
                                for operation in GEOMETRY])  # [5,N,2,3]
        matrix = matrices[kind, torch.arange(len(kind), device=kind.device)]
        pixels[moved] = warp(pixels[moved], matrix, fill)


# The operations have the results of Pillow's functions of the same names.
# COLOUR: pixels [N,3,H,W] from 0 to 255 and level [N] in [0,1] -> pixels.

def autocontrast(pixels: Tensor, level: Tensor) -> Tensor:
    """Stretch each channel to the range 0 to 255."""
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
    """Invert pixels above a threshold."""
    threshold = 256 - (level * 256).floor()[:, None, None, None]
    return torch.where(pixels < threshold, pixels, 255 - pixels)


# GEOMETRY: level [N] in [0,1], direction [N] (±1) and the image's size -> matrices [N,2,3].

def rotate(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Rotate by up to 30 degrees (an integer) about the centre."""
    angle = (level * 30).floor() * direction * (math.pi / 180)
    cosine, sine, x, y = angle.cos(), angle.sin(), width / 2, height / 2
    return _matrix(cosine, -sine, x - x * cosine + y * sine,
                   sine, cosine, y - x * sine - y * cosine)


def shear_x(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Shear by up to 0.3 pixels per row."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, 0.3 * level * direction, zero, zero, zero + 1, zero)


def shear_y(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Shear by up to 0.3 pixels per column."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, zero, zero, 0.3 * level * direction, zero + 1, zero)


def translate_x(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Translate by up to a third of the width, an integer number of pixels."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, zero, (level * width / 3).floor() * direction, zero, zero + 1, zero)


def translate_y(level: Tensor, direction: Tensor, height: int, width: int) -> Tensor:
    """Translate by up to a third of the height, an integer number of pixels."""
    zero = torch.zeros_like(level)
    return _matrix(zero + 1, zero, zero, zero, zero + 1, (level * height / 3).floor() * direction)


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, -1).unflatten(-1, (2, 3))


def warp(pixels: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Affine transform with bilinear sampling: output (x, y) is the input at matrix · (x, y, 1).

    Positions are in pixels, with pixel centres at .5.

    Args:
        pixels: [N,3,H,W] from 0 to 255.
        matrix: [N,2,3].
        fill: colour [3,1,1] of positions outside of the image.
    """
    height, width = pixels.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=pixels.device) + 0.5,
                          torch.arange(width, device=pixels.device) + 0.5, indexing="ij")
    positions = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3) @ matrix.mT  # [N,HW,2]
    size = positions.new_tensor([width, height])
    grid = (positions * 2 / size - 1).view(-1, height, width, 2)
    warped = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    inside = ((positions >= 0) & (positions < size)).all(-1).view(-1, 1, height, width)
    # Pillow truncates. The thousandth keeps integers that rounding errors made slightly smaller.
    return torch.where(inside, (warped + 1e-3).floor(), fill)


COLOUR: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    autocontrast, equalize, posterize, solarize)
GEOMETRY: tuple[Callable[[Tensor, Tensor, int, int], Tensor], ...] = (
    rotate, shear_x, shear_y, translate_x, translate_y)
