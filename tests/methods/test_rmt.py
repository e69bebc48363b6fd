"""RMT: facts of its paper and code."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from tta_apm_baselines.rmt import Rmt, contrastive_loss, logits_and_features

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError
from tta_apm.toolbox.augment import random_view
from tta_apm.toolbox.entropy import entropy, symmetric_cross_entropy

WITHOUT_SOURCE = dict(lambda_contrast=0.0, lambda_source=0.0, num_warm_up=0)
SMALL = dict(num_warm_up=96, warm_up_batch_size=32)


class Counted:
    """A source that counts the batches taken from it."""

    def __init__(self, source):
        self.source = source
        self.num_batches = 0

    def __len__(self):
        return len(self.source)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.num_batches += 1
        return self.source.batch(indices)


@pytest.fixture
def images(images):
    return images[:32]


def equal(before: dict, after: dict) -> bool:
    assert before.keys() == after.keys()
    return all(torch.equal(after[name], value) for name, value in before.items())


def test_symmetric_cross_entropy():
    first, second = torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(0)) * 3
    loss = symmetric_cross_entropy(first, second)
    assert torch.allclose(loss, symmetric_cross_entropy(second, first), atol=1e-5)
    assert (loss >= (entropy(first) + entropy(second)) / 2).all()
    assert torch.allclose(symmetric_cross_entropy(first, first), entropy(first), atol=1e-5)


def test_contrastive_loss_of_equal_views_and_orthogonal_images():
    num_images = 6
    features = 3 * torch.eye(num_images)[:, None].repeat(1, 3, 1)
    expected = math.log(2 + 3 * (num_images - 1) * math.exp(-10))
    assert contrastive_loss(features, 0.1).item() == pytest.approx(expected, abs=1e-5)


def test_contrastive_loss_by_its_definition():
    features = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    flat = nn.functional.normalize(features, dim=-1).flatten(0, 1)
    total = 0.0
    for anchor in range(12):
        similarity = (flat @ flat[anchor] / 0.5).exp()
        others = similarity.sum() - similarity[anchor]
        positives = [index for index in range(12)
                     if index // 3 == anchor // 3 and index != anchor]
        total -= sum((similarity[index] / others).log() for index in positives) / 2
    assert torch.allclose(contrastive_loss(features, 0.5), total / 12)


@pytest.mark.slow
def test_logits_are_student_plus_teacher_before_the_update(digits_resnet, digits_source, images):
    method = Rmt(digits_resnet, source=digits_source, **SMALL)
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher)
    expected = student(images) + teacher(images)
    assert not torch.equal(student(images), teacher(images))
    assert torch.allclose(method(images), expected, atol=1e-5)
    updated = method.student(images) + method.teacher(images)
    assert not torch.allclose(updated, expected, atol=1e-3)


@pytest.mark.slow
def test_the_teacher_follows_by_a_moving_average(digits_resnet, digits_source, images):
    method = Rmt(digits_resnet, momentum=0.9, source=digits_source, **SMALL)
    before = copy.deepcopy(dict(method.teacher.named_parameters()))
    method(images)
    student = dict(method.student.named_parameters())
    for name, teacher in method.teacher.named_parameters():
        assert torch.allclose(teacher, 0.9 * before[name] + 0.1 * student[name], atol=1e-6)
        assert not teacher.requires_grad and teacher.grad is None
        assert student[name].requires_grad


@pytest.mark.slow
def test_every_weight_of_the_student_and_the_projector_trains(digits_resnet, digits_source, images):
    method = Rmt(digits_resnet, source=digits_source, **SMALL)
    before = copy.deepcopy(method.state_dict())
    method(images)
    unchanged = [name for name, value in method.named_parameters()
                 if torch.equal(value, before[name])]
    assert not unchanged


@pytest.mark.slow
def test_reset_restores_everything_bitwise(digits_resnet, digits_source, images):
    for optimizer in ("adam", "sgd"):
        method = Rmt(digits_resnet, optimizer=optimizer, source=digits_source, **SMALL)
        weights = copy.deepcopy(method.state_dict())
        assert {name.split(".")[0] for name in weights} == {"student", "teacher", "projector"}
        state = copy.deepcopy(method.optimizer.state_dict())
        generator = method.generator.get_state()
        for _ in range(2):  # the second time from a state that reset() itself put there
            method(images)
            assert not torch.equal(method.generator.get_state(), generator)
            method.reset()
            assert equal(weights, method.state_dict())
            assert torch.equal(method.generator.get_state(), generator)
            restored = method.optimizer.state_dict()
            assert restored["param_groups"] == state["param_groups"]
            assert restored["state"].keys() == state["state"].keys()
            for key, values in state["state"].items():
                assert equal(values, restored["state"][key])


@pytest.mark.slow
def test_without_replay_the_source_is_not_touched(digits_resnet, digits_source, images):
    source = Counted(digits_source)
    method = Rmt(digits_resnet, source=source, lambda_source=0.0, **SMALL)
    set_up = source.num_batches
    assert set_up == math.ceil(1200 / 32) + 96 // 32  # prototypes and warm-up
    method(images)
    assert source.num_batches == set_up
    method.lambda_source = 1.0
    method(images)
    assert source.num_batches == set_up + 1


@pytest.mark.slow
def test_prototypes_are_class_means(digits_resnet, digits_source):
    method = Rmt(digits_resnet, source=digits_source, num_warm_up=0, warm_up_batch_size=1200)
    pixels, labels = digits_source.batch(torch.arange(1200))
    with torch.no_grad():
        _, features = logits_and_features(method.student, pixels)
    means = torch.stack([features[labels == label].mean(0) for label in range(10)])
    assert torch.allclose(method.prototypes, means, atol=1e-4)
    in_parts = Rmt(digits_resnet, source=digits_source, num_warm_up=0, warm_up_batch_size=400)
    assert torch.allclose(in_parts.prototypes, means, atol=0.1 * means.abs().max().item())


def test_a_class_without_source_images_has_no_prototype(digits_resnet, digits_source):
    _, labels = digits_source.batch(torch.arange(1200))
    positions = (labels != 3).nonzero().squeeze(1)

    class NoThrees:
        def __len__(self):
            return len(positions)

        def batch(self, indices):
            return digits_source.batch(positions[indices])
    method = Rmt(digits_resnet, source=NoThrees(), num_warm_up=0)
    assert method.prototypes.shape[0] == 9
    assert torch.isfinite(method.prototypes).all()


@pytest.mark.slow
def test_warm_up_raises_the_learning_rate_linearly(digits_resnet, digits_source, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (
        rates.append([group["lr"] for group in self.param_groups]), step(self)))
    cold = Rmt(digits_resnet, source=digits_source, num_warm_up=0, warm_up_batch_size=32)
    assert not rates
    warm = Rmt(digits_resnet, source=digits_source, num_warm_up=4 * 32 + 5, warm_up_batch_size=32)
    assert rates == [[pytest.approx(1e-3 * step / 4)] for step in (1, 2, 3, 4)]
    assert warm.optimizer.param_groups[0]["lr"] == 1e-3
    assert equal(cold.projector.state_dict(), warm.projector.state_dict())
    assert not equal(cold.student.state_dict(), warm.student.state_dict())
    assert not equal(cold.teacher.state_dict(), warm.teacher.state_dict())


def test_the_authors_settings(digits_resnet):
    method = Rmt(digits_resnet, **WITHOUT_SOURCE)
    adam = method.optimizer.param_groups[0]
    assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (1e-3, (0.9, 0.999), 0)
    assert method.momentum == 0.999
    sgd = Rmt(digits_resnet, optimizer="sgd", lr=1e-2, **WITHOUT_SOURCE).optimizer.param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"]) == (1e-2, 0.9, True)


def test_the_projector_has_two_layers(digits_resnet, digits_source):
    projector = Rmt(digits_resnet, source=digits_source, num_warm_up=0).projector
    shapes = [tuple(parameter.shape) for parameter in projector.parameters()]
    assert shapes == [(128, 128), (128,), (128, 128), (128,)]
    assert torch.allclose(projector[0].weight.std(), torch.tensor(1 / (3 * 128)).sqrt(), rtol=0.05)


def test_it_runs_without_source_images_if_nothing_asks_for_them(digits_resnet, images):
    assert torch.isfinite(Rmt(digits_resnet, **WITHOUT_SOURCE)(images)).all()
    for key, value in (("lambda_contrast", 1.0), ("lambda_source", 1.0), ("num_warm_up", 500)):
        with pytest.raises(UserError, match="needs source images"):
            Rmt(digits_resnet, **{**WITHOUT_SOURCE, key: value})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_penultimate_features_are_what_the_head_takes(name):
    import timm
    model = timm.create_model(name, num_classes=7).eval()
    with torch.no_grad():
        logits, features = logits_and_features(model, torch.rand(2, 3, 224, 224))
        assert torch.allclose(model.get_classifier()(features), logits, atol=1e-5)


def test_a_view_is_drawn_once_for_the_batch_but_for_its_noise(images):
    twice = images[:1].repeat(2, 1, 1, 1)
    views = random_view(twice, torch.Generator().manual_seed(1))
    assert views.shape == twice.shape and 0 <= views.min() and views.max() <= 1
    assert 0 < (views[0] - views[1]).abs().max() < 0.05
    assert (views - twice).abs().max() > 0.1
    assert torch.equal(views, random_view(twice, torch.Generator().manual_seed(1)))
    assert not torch.equal(views, random_view(twice, torch.Generator().manual_seed(2)))


@pytest.mark.slow
def test_half_of_the_views_are_mirrored(images):
    mirrored = 0
    for seed in range(40):
        view = random_view(images[:4], torch.Generator().manual_seed(seed), flip=False)
        flipped = random_view(images[:4], torch.Generator().manual_seed(seed))
        mirrored += bool((flipped - view.flip(-1)).abs().mean() < (flipped - view).abs().mean())
    assert 10 < mirrored < 30


def test_a_view_keeps_the_middle_of_an_image_and_shows_no_black_edge():
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 12:20, 12:20] = 1
    for seed in range(10):
        view = random_view(1 - 0.5 * images, torch.Generator().manual_seed(seed))
        edge = torch.cat([view[..., :3, :].flatten(), view[..., :3].flatten()])
        assert edge.min() > edge.max() - 0.1
        assert (view < 0.8 * edge.mean()).any()


def test_bad_values_are_told(digits_resnet, digits_source, images):
    for setting, message in ((dict(momentum=1.5), "momentum 1.5"),
                             (dict(lambda_source=-1.0), "lambda_source -1.0"),
                             (dict(num_warm_up=199), "num_warm_up 199 is less than one batch"),
                             (dict(temperature=0.0), "temperature 0.0"),
                             (dict(warm_up_batch_size=1), "warm_up_batch_size 1"),
                             (dict(optimizer="adamw"), "did you mean 'adam'")):
        with pytest.raises(UserError, match=message):
            Rmt(digits_resnet, source=digits_source, **setting)
    with pytest.raises(ValueError, match="batch of one"):
        Rmt(digits_resnet, **WITHOUT_SOURCE)(images[:1])
    convolution = Classifier(nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), image_size=None,
                             mean=(0.5,) * 3, std=(0.5,) * 3, name="small", weights="random")
    with pytest.raises(UserError, match="no linear layer"):
        Rmt(convolution, source=digits_source, num_warm_up=0)
