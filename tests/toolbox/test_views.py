"""Views: equal to torchvision's and Pillow's results, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import resized_crop

from tta_apm.toolbox import augmix as operations
from tta_apm.toolbox.augmix import augmix
from tta_apm.toolbox.views import crop_resize, crop_views, pad_crop_views


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def images():
    """Three smooth images [3,3,32,32] of whole 255ths, neither black nor white."""
    coarse = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return (smooth * 180 + 40).round() / 255


@pytest.mark.parametrize("size", [(32, 32), (8, 20), (50, 64)])
def test_crop_resize_is_torchvision_s(images, size):
    boxes = torch.tensor([[0, 0, 32, 32], [3, 7, 11, 20], [20, 1, 12, 5]])
    ours = crop_resize(images, boxes.expand(3, -1, -1), *size)
    for index, box in enumerate(boxes.tolist()):
        theirs = resized_crop(images, *box, list(size), antialias=True)
        assert torch.allclose(ours[:, index], theirs, atol=1e-5)


@pytest.mark.slow
def test_crops_have_the_areas_and_ratios_of_randomresizedcrop():
    ramp = torch.arange(64.0).expand(64, 64)
    image = torch.stack([ramp, ramp.T, torch.zeros(64, 64)])[None]
    crops = crop_views(image, 500, generators(0), size=256, flip=False)[0]
    middle = crops[:, :, 127:129, 127:129]  # away from the edges the slope is that of the resize
    width = 256 * (middle[:, 0, 0, 1] - middle[:, 0, 0, 0])
    height = 256 * (middle[:, 1, 1, 0] - middle[:, 1, 0, 0])
    area, ratio = width * height / 64**2, (width / height).log()
    # Sides are rounded to whole pixels, so the bounds hold only roughly.
    assert 0.07 < area.min() < 0.1 and 0.9 < area.max() < 1.03
    assert ratio.abs().max() < math.log(4 / 3) + 0.06
    assert abs(ratio.mean()) < 0.03 and abs(area.mean() - 0.5) < 0.05


def test_crops_of_full_area_are_the_image_or_its_mirror(images):
    crops = crop_views(images, 20, generators(0, 1, 2), scale=(1.0, 1.0))
    plain = (crops - images[:, None]).abs().amax((2, 3, 4)) < 1e-5
    mirrored = (crops - images.flip(-1)[:, None]).abs().amax((2, 3, 4)) < 1e-5
    assert (plain ^ mirrored).all()
    assert plain.any(1).all() and mirrored.any(1).all()


def test_a_box_that_never_fits_is_replaced_by_the_largest_central_one():
    wide = torch.arange(90.0).expand(1, 3, 30, 90)
    crop = crop_views(wide, 1, generators(0), scale=(1.0, 1.0), flip=False)
    assert crop.shape == (1, 1, 3, 30, 90)
    assert crop.min() >= 25 and crop.max() <= 64  # 40 of the 90 columns


@pytest.mark.parametrize("make", [
    lambda images, made_by: crop_views(images, 6, made_by, size=24),
    lambda images, made_by: pad_crop_views(images, 6, made_by),
    lambda images, made_by: augmix(images[:, None].expand(-1, 6, -1, -1, -1), made_by),
], ids=["crop_views", "pad_crop_views", "augmix"])
def test_an_image_s_views_depend_on_its_generator_alone(images, make):
    together = make(images, generators(5, 6, 7))
    for index in range(3):
        alone = make(images[index:index + 1], generators(5 + index))
        assert torch.allclose(alone[0], together[index], atol=1e-6)
    assert not torch.allclose(make(images, generators(8, 6, 7))[0], together[0], atol=1e-3)
    assert not torch.allclose(together[:, 0], together[:, 1], atol=1e-3)


@pytest.mark.slow
def test_pad_crops_are_shifts_of_the_zero_padded_image(images):
    image = images[:1]
    padded = torch.nn.functional.pad(image, [4] * 4)[0]
    possible = torch.stack([padded[:, top:top + 32, left:left + 32]
                            for top in range(9) for left in range(9)])
    possible = torch.cat([possible, possible.flip(-1)])
    made = pad_crop_views(image, 300, generators(0))[0]
    equal = (made[:, None] == possible).flatten(2).all(2)
    assert (equal.sum(1) == 1).all()
    assert equal.any(0).sum() > 100  # of 162
    assert equal[:, :81].any() and equal[:, 81:].any()
    assert torch.equal(pad_crop_views(image, 1, generators(0), padding=0, flip=False)[0], image)


AFFINE = dict(method=Image.Transform.AFFINE, resample=Image.Resampling.BILINEAR, fillcolor=128)
PILLOW = {  # by level in [0,1] and direction, at 32x32
    "autocontrast": lambda image, level, way: ImageOps.autocontrast(image),
    "equalize": lambda image, level, way: ImageOps.equalize(image),
    "posterize": lambda image, level, way: ImageOps.posterize(image, 4 - int(level * 4)),
    "solarize": lambda image, level, way: ImageOps.solarize(image, 256 - int(level * 256)),
    "rotate": lambda image, level, way: image.rotate(
        way * int(level * 30), resample=Image.Resampling.BILINEAR, fillcolor=128),
    "shear_x": lambda image, level, way: image.transform(
        image.size, data=(1, way * level * 0.3, 0, 0, 1, 0), **AFFINE),
    "shear_y": lambda image, level, way: image.transform(
        image.size, data=(1, 0, 0, way * level * 0.3, 1, 0), **AFFINE),
    "translate_x": lambda image, level, way: image.transform(
        image.size, data=(1, 0, way * int(level * 32 / 3), 0, 1, 0), **AFFINE),
    "translate_y": lambda image, level, way: image.transform(
        image.size, data=(1, 0, 0, 0, 1, way * int(level * 32 / 3)), **AFFINE),
}


def test_augmix_has_nine_operations():
    names = [operation.__name__ for operation in (*operations.COLOUR, *operations.GEOMETRY)]
    assert sorted(names) == sorted(PILLOW)


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("level", [0.07, 0.6])
@pytest.mark.parametrize("way", [-1, 1])
def test_operations_are_pillow_s(images, name, level, way):
    pixels = (images[:1] * 255).round()
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    theirs = torch.from_numpy(np.array(PILLOW[name](image, level, way))).permute(2, 0, 1)
    operation, level = getattr(operations, name), torch.tensor([level])
    if operation in operations.COLOUR:
        ours = operation(pixels, level)
    else:
        fill = torch.tensor([128.0, 0.0, 0.0]).view(3, 1, 1)  # Pillow's reading of 128
        ours = operations.warp(pixels, operation(level, torch.tensor([float(way)]), 32, 32), fill)
    difference = (ours[0] - theirs).abs()
    assert difference.max() <= 1 and difference.mean() < 0.02


def test_augmix_mixes_within_bounds(images):
    crops = crop_views(images, 30, generators(0, 1, 2))
    mixed = augmix(crops, generators(0, 1, 2))
    assert mixed.shape == crops.shape
    assert mixed.min() >= 0 and mixed.max() <= 1 and torch.isfinite(mixed).all()
    changed = (mixed - crops).abs().mean((2, 3, 4))
    assert (changed > 1e-4).float().mean() > 0.9 and changed.mean() < 0.2


def test_augmix_of_one_colour_is_that_colour_where_nothing_moves_in():
    grey = torch.full((1, 40, 3, 16, 16), 96 / 255)  # posterize keeps it: its lower bits are 0
    mixed = augmix(grey, generators(0))
    assert torch.allclose(mixed[..., 6:10, 6:10], grey[..., 6:10, 6:10], atol=1e-6)
    filled = augmix(grey, generators(0), fill=(96, 96, 96))
    assert torch.allclose(filled, grey, atol=1e-6)


def test_the_weights_of_augmix_are_uniform_on_simplex_and_interval(monkeypatch):
    """Chains that invert their channel show the weights: Dirichlet(1,1,1) and Beta(1,1)."""
    def show(pixels, active, choice, strength, sign, fill):
        chain = torch.arange(len(pixels)) % operations.CHAINS
        pixels[torch.arange(len(pixels)), chain] = 255.0
    monkeypatch.setattr(operations, "_operate", show)
    shown = augmix(torch.zeros(1, 4000, 3, 1, 1), generators(0))[0, :, :, 0, 0]
    kept = shown.sum(1)  # 1 - m
    assert abs(kept.mean() - 1 / 2) < 0.02 and abs(kept.var() - 1 / 12) < 0.005
    weights = shown / kept[:, None]
    assert torch.allclose(weights.mean(0), torch.tensor(1 / 3).expand(3), atol=0.02)
    assert torch.allclose(weights.var(0), torch.tensor(1 / 18).expand(3), atol=0.005)


def test_chains_are_one_to_three_operations_deep_and_use_all_nine(monkeypatch):
    steps = []

    def watch(pixels, active, choice, strength, sign, fill):
        steps.append((active, (choice * 9).long()))
    monkeypatch.setattr(operations, "_operate", watch)
    augmix(torch.zeros(1, 600, 3, 1, 1), generators(0))
    depth = torch.stack([active for active, _ in steps]).sum(0)
    assert torch.allclose(torch.bincount(depth)[1:] / 1800, torch.tensor(1 / 3), atol=0.04)
    for _, which in steps:
        assert torch.allclose(torch.bincount(which) / 1800, torch.tensor(1 / 9), atol=0.03)
