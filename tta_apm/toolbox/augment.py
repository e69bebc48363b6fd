"""Random augmentation of a whole batch, with the method's own generator."""

from __future__ import annotations

import torch
import torchvision.transforms.functional as T
from torch import Tensor
from torchvision.transforms import InterpolationMode


def random_view(images: Tensor, generator: torch.Generator, *, flip: bool = True,
                padding: str = "edge", blur_and_noise: bool = True) -> Tensor:
    """CoTTA's augmentation (Wang et al., CVPR 2022) of images [B,3,H,W] in [0,1].

    Colour jitter, a small affine transform, blur, a mirror image and noise. As in the authors'
    code, all images of a batch get the same random transform; only the noise differs.

    Args:
        generator: source of all random numbers, on the CPU.
        flip: whether to mirror the batch with probability 1/2.
        padding: how images are continued beyond their border: "edge" or "reflect".
        blur_and_noise: whether to blur and to add noise (ROID does neither).

    Returns:
        Views [B,3,H,W] in [0,1].
    """
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    height, width = images.shape[-2:]
    jitters = [lambda x: T.adjust_brightness(x, uniform(0.6, 1.4)),
               lambda x: T.adjust_contrast(x, uniform(0.7, 1.3)),
               lambda x: T.adjust_saturation(x, uniform(0.5, 1.5)),
               lambda x: T.adjust_hue(x, uniform(-0.06, 0.06)),
               lambda x: T.adjust_gamma(x, uniform(0.7, 1.3))]
    views = images.clamp(0, 1)
    for index in torch.randperm(len(jitters), generator=generator).tolist():
        views = jitters[index](views)
    views = T.pad(views, [width // 2, height // 2], padding_mode=padding)
    move = [round(uniform(-width / 8, width / 8)), round(uniform(-height / 8, height / 8))]
    views = T.affine(views, uniform(-15, 15), move, uniform(0.9, 1.1), [0.0, 0.0],
                     interpolation=InterpolationMode.BILINEAR)
    if blur_and_noise:
        views = T.gaussian_blur(views, [5, 5], [uniform(0.001, 0.5)])
    views = T.center_crop(views, [height, width])
    if flip and uniform(0, 1) < 0.5:
        views = views.flip(-1)
    if blur_and_noise:
        seed = int(torch.randint(2**31, (), generator=generator))
        views = views + 0.005 * torch.randn(
            views.shape, device=views.device, dtype=views.dtype,
            generator=torch.Generator(views.device).manual_seed(seed))
    return views.clamp(0, 1)
