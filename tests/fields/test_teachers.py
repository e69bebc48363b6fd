"""Teachers: what a student is fitted to, a CLIP or a classifier, on one image (Figure 3)."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from places import ROOT
from small_student import CHINA, SMALL
from tta_apm.errors import UserError
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.overfit import overfit
from tta_apm.fields.photos import find_image, read_image
from tta_apm.fields.teachers import load_teacher


@pytest.mark.slow
def test_loss_of_one_image_falls_by_five_orders_of_magnitude():
    """Figure 3: 250 steps on one image, from 1e-3 to 1e-12."""
    cfg = PretrainConfig(image_size=32, patch=4, code=32, hidden=(128, 128),
                         teacher="clip/digits_clip", weights="digits_clip.safetensors",
                         cls_weight=1.0, grid_weight=0.0, rgb_weight=0.0, lr=1e-3)
    teacher = load_teacher(cfg, torch.device("cpu"))
    image = read_image(find_image(CHINA), cfg.image_size)
    before, after = overfit(cfg, teacher, image, (0, 250))
    assert after.loss < 1e-5 * before.loss
    assert before.error.shape == (64,)
    assert torch.isfinite(after.error).all()


NETWORK = f"{ROOT / 'examples/my_network.py'}:resnet20"


@pytest.mark.slow
@pytest.mark.parametrize("name, width, weights", [
    ("timm/resnet10t", 512, "random"), (NETWORK, 64, "random"), (NETWORK, 64, "")])
def test_a_classifier_is_a_teacher(name, width, weights):
    """Its grid are the activations that the head's input is the mean of."""
    cfg = replace(SMALL, image_size=64, teacher=f"classifier/{name}", weights=weights,
                  grid_weight=1.0, rgb_weight=0.0)
    teacher = load_teacher(cfg, torch.device("cpu"))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features, grid = teacher.encode(images)
    assert features.shape == (2, width) == (2, teacher.feature_dim)
    assert torch.allclose(grid.mean((1, 2)), features, atol=1e-5)
    pooled, places = teacher.targets(images, cfg.grid)
    assert torch.equal(pooled, features) and places.shape == (2, cfg.grid**2, width)
    if weights == "random":
        again, other = (load_teacher(replace(cfg, seed=seed), torch.device("cpu")).weights
                        for seed in (cfg.seed, cfg.seed + 1))
        assert teacher.weights == again != other


@pytest.mark.slow
def test_a_student_of_a_classifier_comes_to_fit_its_grid():
    cfg = PretrainConfig(image_size=32, patch=4, code=32, hidden=(128, 128),
                         teacher=f"classifier/{NETWORK}", weights="random", cls_weight=0.0,
                         grid_weight=1.0, rgb_weight=0.0, lr=1e-3)
    image = read_image(find_image(CHINA), cfg.image_size)
    before, after = overfit(cfg, load_teacher(cfg, torch.device("cpu")), image, (0, 250))
    assert after.error.mean() < 0.1 * before.error.mean()


@pytest.mark.slow
@pytest.mark.parametrize("name, message", [
    ("classifier/vgg11", "CLASSIFIER.MODEL 'vgg11' must be one of"),
    ("classifier/timm/resnet1", "did you mean"),
    ("classifier/timm/vgg11", "has no grid for L_grid"),
])
def test_a_classifier_that_is_no_teacher_is_told_in_a_sentence(name, message):
    cfg = replace(SMALL, teacher=name, weights="random", grid_weight=1.0)
    with pytest.raises(UserError, match=re.escape(message)):
        load_teacher(cfg, torch.device("cpu"))
