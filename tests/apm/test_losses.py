"""APM's losses and columns: FastStudent against Student, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from tta_apm.apm.fast import FastStudent
from tta_apm.apm.losses import Losses, Targets, colour_targets, grid_targets
from tta_apm.apm.method import Apm
from tta_apm.apm.student import MEAN, STD, Student, sample_weights
from tta_apm.backbones import grids
from tta_apm.errors import UserError
from tta_apm.toolbox.episodes import image_generators, stack
from tta_apm.toolbox.views import crop_views

GRID, PATCH, D = 4, 8, 16
SMALL = dict(image_size=32, patch=8, code=32, hidden=(64, 48, 32), lr=3e-3, steps=4)


@pytest.fixture(scope="module")
def teacher(digits_clip):
    return copy.deepcopy(digits_clip).double()


@pytest.fixture(scope="module")
def images(digits_test) -> Tensor:
    return digits_test[0][:3].double()


def plain_loss(student: Student, inputs: Tensor, chosen: Tensor, weights, targets) -> Tensor:
    """The sum of the paper's three losses for one image."""
    features = student.columns(inputs)[chosen]
    if student.pooling is None:
        pooled = features.mean(0)
    else:
        placed = features + student.pooling.code[chosen]
        pooled = student.pooling.attention(student.pooling.query[None], placed, placed)[0][0]
    loss = weights[0] * F.mse_loss(pooled, targets[0])
    if weights[1]:
        loss = loss + weights[1] * F.mse_loss(features, targets[1][chosen])
    if weights[2]:
        colours = student.colours(inputs[chosen], features)
        loss = loss + weights[2] * F.mse_loss(colours, targets[2][chosen])
    return loss


CASES = {
    "cls": ((1, 0, 0), {}),
    "cls-attention": ((1, 0, 0), {"pooling": "attention"}),
    "grid": ((0, 1, 0), {}),
    "rgb": ((0, 0, 1), {}),
    "all-attention": ((1, 0.5, 2), {"pooling": "attention"}),
    "local-patch": ((1, 0.5, 2), {"local_patch": True, "kernels": 3}),
    "given-trigger": ((1, 1, 1), {"given_trigger_dim": 24}),
    "given-trigger-local-patch": ((1, 1, 1), {"given_trigger_dim": 24, "local_patch": True}),
}


@pytest.mark.parametrize("sparse", [False, True], ids=["stacked", "sparse"])
@pytest.mark.parametrize("columns", [None, torch.tensor([1, 6, 7, 12])], ids=["whole", "some"])
@pytest.mark.parametrize("weights, keywords", CASES.values(), ids=CASES)
def test_gradients_equal_the_plain_students(weights, keywords, columns, sparse, monkeypatch):
    monkeypatch.setattr("tta_apm.apm.fast.MIN_MULTIPLY_ADDS", 0)
    torch.manual_seed(0)
    student = sample_weights(Student(**{
        **dict(grid=GRID, patch=PATCH, kernels=1, code=16, hidden=(40, 32, 24), feature_dim=D,
               pooling="mean", rgb=weights[2] > 0), **keywords}), 0, std=0.3).double()
    images = torch.randn(2, 3, GRID * PATCH, GRID * PATCH).double()
    trigger = torch.randn(2, 24).double() if student.given_trigger_dim else None
    targets = (torch.randn(2, D).double(), torch.randn(2, GRID**2, D).double(),
               torch.rand(2, GRID**2, 3).double())
    chosen = torch.arange(GRID**2) if columns is None else columns

    fast = FastStudent(student, columns, sparse=sparse)
    stacked = stack(fast.initial, 2)
    outputs = fast.outputs(stacked, fast.patches(images), trigger, features=weights[1] > 0,
                           colours=weights[2] > 0)
    loss = Losses(*weights)(outputs, Targets(targets[0], fast.select_columns(targets[1]),
                                             fast.select_columns(targets[2])))
    loss.sum().backward()
    for b in range(2):
        student.zero_grad()
        inputs = student.unfold(images[b], None if trigger is None else trigger[b])
        expected = plain_loss(student, inputs, chosen, weights, [value[b] for value in targets])
        expected.backward()
        assert torch.allclose(loss[b], expected, rtol=1e-12)
        of_student = copy.deepcopy(student)  # its gradients, laid out as weights are
        for gradient, parameter in zip(of_student.parameters(), student.parameters()):
            gradient.data = torch.zeros_like(parameter) if parameter.grad is None \
                else parameter.grad
        for name, gradient in FastStudent(of_student).initial.items():
            found = torch.zeros_like(gradient) if stacked[name].grad is None \
                else stacked[name].grad[b]
            assert torch.allclose(found, gradient, rtol=1e-9, atol=1e-13), name


def reference(method: Apm, student: Student, image: Tensor, weights, views=None) -> Tensor:
    """Test-time training of one image by a plain loop; the student's feature [D]."""
    teacher = method.backbone
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (MEAN, STD))
    features, grid, tokens = teacher.encode_grid(image[None], -2)
    trigger = tokens.mean((1, 2))[0] if student.given_trigger_dim else None
    size = (GRID, GRID)
    grid = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
    colours = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).mean((-2, -1))
    targets = (features[0], grid[0].flatten(1).T, colours.flatten(1).T)
    optimizer = torch.optim.Adam(student.parameters(), lr=method.lr)
    for step in range(method.steps):
        shown = image if views is None else views[step]
        inputs = student.unfold((shown - mean) / std, trigger)
        optimizer.zero_grad()
        plain_loss(student, inputs, torch.arange(GRID**2), weights, targets).backward()
        optimizer.step()
    return student((image - mean) / std, trigger).detach()


@pytest.mark.slow
@pytest.mark.parametrize("weights, keywords", [
    ((1, 1, 1), {}),
    ((0, 1, 0), {"pooling": "mean"}),
    ((1, 0, 1), {"local_patch": True, "kernels": 2}),
    ((1, 0, 0), {"trigger": "vit", "trigger_layer": -2}),
    ((1, 2, 0), {"trigger": "vit", "trigger_layer": -2, "local_patch": True}),
], ids=["all", "grid", "rgb-local", "vit", "vit-grid-local"])
def test_the_method_equals_a_plain_loop(teacher, images, weights, keywords):
    cls_weight, grid_weight, rgb_weight = weights
    method = Apm(teacher, **SMALL, **keywords, cls_weight=cls_weight, grid_weight=grid_weight,
                 rgb_weight=rgb_weight)
    student = sample_weights(Student(
        grid=GRID, patch=PATCH, kernels=keywords.get("kernels", 1), code=32,
        hidden=SMALL["hidden"], feature_dim=64, pooling="mean", rgb=rgb_weight > 0,
        local_patch=keywords.get("local_patch", False),
        given_trigger_dim=64 if "trigger" in keywords else 0), 42).double()
    expected = torch.stack([reference(method, copy.deepcopy(student), image, weights)
                            for image in images])
    assert (method(images) - teacher.classify(expected)).abs().max() < 1e-8


def test_augmentation_shows_the_student_a_new_crop_at_each_step(teacher, images):
    method = Apm(teacher, **SMALL, augmentation="crop", seed=7)
    student = sample_weights(Student(
        grid=GRID, patch=PATCH, kernels=1, code=32, hidden=SMALL["hidden"], feature_dim=64,
        pooling="mean"), 7).double()
    expected = []
    for image in images:
        generators = image_generators(image[None], 7)
        views = [crop_views(image[None], 1, generators, flip=False)[0, 0]
                 for _ in range(method.steps)]
        assert not torch.equal(views[0], views[1])
        expected.append(reference(method, copy.deepcopy(student), image, (1, 0, 0), views))
    expected = teacher.classify(torch.stack(expected))
    assert (method(images) - expected).abs().max() < 1e-8
    mirrored = Apm(teacher, **SMALL, augmentation="crop_flip", seed=7)(images)
    assert (mirrored - expected).abs().max() > 1e-6


def test_what_is_off_costs_nothing(teacher, images, monkeypatch):
    """Without these losses there are no further weights, no grid and no features per column."""
    monkeypatch.setattr(type(teacher), "encode_grid", None)
    monkeypatch.setattr("tta_apm.apm.method.colour_targets", None)
    method = Apm(teacher, **SMALL)
    projected = []
    plain = FastStudent.outputs

    def spy(self, *args, **keywords):
        outputs = plain(self, *args, **keywords)
        projected.append(outputs[1:])
        return outputs
    monkeypatch.setattr(FastStudent, "outputs", spy)
    method(images)
    assert set(projected) == {(None, None)}
    student = Student(grid=GRID, patch=PATCH, kernels=1, code=32, hidden=SMALL["hidden"],
                      feature_dim=64, pooling="mean")
    count = sum(parameter.numel() for parameter in student.parameters())
    assert sum(value.numel() for value in method.student.initial.values()) == count


def test_the_teacher_runs_once_also_for_grid_and_trigger(teacher, images):
    method = Apm(teacher, **SMALL, grid_weight=1, rgb_weight=1, trigger="vit")
    method.chunk = 2
    seen = []
    handle = teacher.model.visual.conv1.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0])))
    method(images)
    handle.remove()
    assert sum(seen) == len(images)


@pytest.mark.slow
@pytest.mark.parametrize("weights, asked", [
    ({"cls_weight": 0.0, "grid_weight": 1.0}, {"features": True, "colours": False}),
    ({"cls_weight": 1.0, "rgb_weight": 1.0}, {"features": False, "colours": True})])
def test_the_losses_fall(digits_clip, digits_test, monkeypatch, weights, asked):
    images = digits_test[0][:4]
    method = Apm(digits_clip, image_size=32, patch=8, code=64, hidden=(256, 128), lr=1e-3,
                 steps=40, **weights)
    method.chunk = 4
    targets = method._targets(images, method.teacher.encode(images))
    losses = []
    plain = FastStudent.outputs

    def spy(*args, **keywords):
        outputs = plain(*args, **keywords)
        if keywords:  # a step, not the prediction
            assert keywords == asked
            losses.append(Losses(0, 1, 1)(outputs, targets).detach())
        return outputs
    monkeypatch.setattr(FastStudent, "outputs", spy)
    method(images)
    assert len(losses) == 40
    assert (losses[-1] < losses[0] / 2).all()


def test_targets_of_a_grid_of_the_same_size_are_that_grid():
    grid = torch.randn(2, 4, 4, 5)
    assert torch.equal(grid_targets(grid, 4), grid.flatten(1, 2))


@pytest.mark.parametrize("side", [2, 3, 8])
def test_targets_of_a_grid_of_another_size_keep_their_position(side):
    """A ramp along x is resampled to a ramp: values rise from left to right, and rows are equal."""
    ramp = torch.arange(4.0).expand(1, 4, 4)[..., None]
    resampled = grid_targets(ramp, side).view(side, side)
    assert torch.allclose(resampled, resampled[:1].expand(side, side))
    assert (resampled[0].diff() > 0).all()
    assert torch.allclose(resampled.mean(), torch.tensor(1.5), atol=1e-5)


def test_colour_targets_are_the_means_of_patches():
    image = torch.rand(1, 3, 4, 6)
    found = colour_targets(image, 2)
    assert found.shape == (1, 6, 3)
    assert torch.allclose(found[0, 4], image[0, :, 2:, 2:4].mean((1, 2)))


def test_positions_of_a_vit_are_its_last_tokens_in_the_joint_space(digits_clip, digits_test):
    images, tower = digits_test[0][:3], digits_clip.model.visual
    last = []
    handle = tower.transformer.register_forward_hook(
        lambda module, inputs, output: last.append(output))
    features = digits_clip.encode_image(images)
    handle.remove()
    encoded = digits_clip.encode_grid(images)
    assert torch.equal(encoded.features, features) and encoded.tokens is None
    expected = (tower.ln_post(last[0][:, 1:]) @ tower.proj).unflatten(1, (8, 8))
    assert torch.allclose(encoded.grid, expected, atol=1e-6)
    tokens = digits_clip.encode_grid(images, 2).tokens  # of the last of three blocks
    assert torch.allclose(tokens, last[0][:, 1:].unflatten(1, (8, 8)), atol=1e-6)
    assert torch.equal(tokens, digits_clip.encode_grid(images, -1).tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name, pool, size, side", [
    ("resnet10t", "avg", 64, 2), ("vit_tiny_patch16_224", "token", 224, 14),
    ("convnext_atto", "avg", 64, 2), ("swin_tiny_patch4_window7_224", "avg", 224, 7)])
def test_positions_of_timm_towers(name, pool, size, side):
    """The features are the tower's. If it pools by the mean and its head is linear, they are the
    mean over the positions."""
    torch.manual_seed(0)
    tower = TimmModel(name, 12, image_size=size, pool=pool, proj="linear").eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        encoded = grids.encode(tower, images, layer=-1)
        assert torch.allclose(encoded.features, tower(images), atol=1e-5)
    assert encoded.grid.shape == (2, side, side, 12)
    assert encoded.tokens.shape[:3] == (2, side, side)
    if name == "resnet10t":
        assert torch.allclose(encoded.grid.mean((1, 2)), encoded.features, atol=1e-5)


def test_positions_of_a_clip_resnet_are_what_all_attention_on_them_gives():
    """With a grid of one position and without codes, the pooling sees that position twice."""
    torch.manual_seed(0)
    tower = ModifiedResNet([1, 1, 1, 1], output_dim=10, heads=4, image_size=32, width=8).eval()
    tower.attnpool.positional_embedding.data.zero_()
    with torch.no_grad():
        encoded = grids.encode(tower, torch.randn(2, 3, 32, 32), layer=1)
    assert torch.allclose(encoded.grid[:, 0, 0], encoded.features, atol=1e-5)
    assert encoded.tokens.shape == (2, 8, 8, 32)


@pytest.mark.slow
def test_a_teacher_without_a_grid_is_told(digits_clip):
    other = copy.deepcopy(digits_clip)
    other.model.visual = VisionTransformer(
        image_size=32, patch_size=8, width=32, layers=1, heads=2, mlp_ratio=2, output_dim=64,
        attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2)
    Apm(other, **SMALL)
    for keywords in ({"grid_weight": 1.0}, {"trigger": "vit"}):
        with pytest.raises(UserError, match="no grid of features"):
            Apm(other, **SMALL, **keywords)


@pytest.mark.parametrize("keywords, message", [
    ({"grid_weight": -1.0}, "must be at least 0"),
    ({"cls_weight": 0.0}, "one of them positive"),
    ({"rgb_weight": float("nan")}, "must be at least 0"),
    ({"cls_weight": 0.0, "rgb_weight": 1.0}, "does not train the features"),
    ({"cls_weight": 0.0, "grid_weight": 1.0, "pooling": "attention"}, "use pooling mean"),
    ({"trigger": "vat"}, "did you mean 'vit'"),
    ({"trigger": "vit", "trigger_layer": 3}, "no layer 3"),
    ({"trigger": "vit", "trigger_layer": -4}, "no layer -4"),
    ({"augmentation": "crops"}, "did you mean 'crop'"),
    ({"augmentation": "crop", "grid_weight": 1.0}, "grid_weight 0"),
    ({"augmentation": "crop", "trigger": "vit"}, "trigger conv"),
])
def test_bad_values_are_told(digits_clip, keywords, message):
    with pytest.raises(UserError, match=message):
        Apm(digits_clip, **SMALL, **keywords)
