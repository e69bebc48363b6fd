"""Classifiers as APM's teachers: timm's, with a named layer, and users' own."""

from __future__ import annotations

import copy
import json
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from places import ROOT
from tta_apm import Classifier, cli
from tta_apm.apm.losses import grid_targets
from tta_apm.apm.method import Apm
from tta_apm.apm.student import MEAN, STD, Student, sample_weights
from tta_apm.apm.surviving import ApmSurviving
from tta_apm.apm.teacher import ClassifierTeacher
from tta_apm.backbones.image_tower import as_classifier
from tta_apm.bench.records import find_records, load_predictions, load_record
from tta_apm.errors import UserError

GRID, PATCH = 4, 8
SMALL = dict(image_size=32, patch=PATCH, code=32, hidden=(64, 48, 32), lr=3e-3, steps=5)
HALF = dict(mean=(0.5,) * 3, std=(0.5,) * 3)


class Plain(nn.Module):
    """A network of a convolution, the mean over positions, a hidden layer and a head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, stride=4)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(self.conv(images).relu().mean((2, 3)))
        return self.head(F.relu(hidden, inplace=True))


class Skips(Plain):
    """A network whose head has more inputs than the hidden layer's output."""

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.conv(images).mean((2, 3))
        return self.head(self.hidden(pooled)) + pooled[:, :10]


def classifier(make, **keywords) -> Classifier:
    """A network with random weights, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
    return Classifier(net, **{**HALF, "image_size": 32, **keywords}).double()


def vit(**keywords) -> nn.Module:
    return timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2,
                                         num_heads=2, num_classes=10, **keywords)


@pytest.fixture
def images(digits_test) -> Tensor:
    return digits_test[0][:4].double()


def features_of(teacher: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The input [B,D] of digits_resnet's head, and the feature map [B,h,w,D] whose mean it is."""
    maps = teacher.net.forward_features(teacher.prepare(images))
    return maps.mean((2, 3)), maps.permute(0, 2, 3, 1)


def adapt_one(method: Apm, image: Tensor, feature: Tensor, positions: Tensor, grid_weight: float,
              pooling: str) -> Tensor:
    """The reference: one image, one student, a plain loop; the student's feature [D]."""
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (MEAN, STD))
    student = sample_weights(Student(grid=GRID, patch=PATCH, kernels=1, code=32,
                                     hidden=SMALL["hidden"], feature_dim=len(feature),
                                     pooling=pooling), 42).double()
    shown = (image - mean) / std
    optimizer = torch.optim.Adam(student.parameters(), lr=method.lr)
    for _ in range(method.steps):
        optimizer.zero_grad()
        loss = F.mse_loss(student(shown), feature)
        loss = loss + grid_weight * F.mse_loss(student.columns(student.unfold(shown)), positions)
        loss.backward()
        optimizer.step()
    return student(shown).detach()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "attention"])  # those of the presets
@pytest.mark.parametrize("grid_weight", [0.0, 0.5], ids=["cls", "grid"])
@pytest.mark.parametrize("similarity", ["own", "cosine"])
def test_equals_a_plain_loop_in_float64(exact_resnet, images, similarity, grid_weight, pooling):
    exact_resnet.image_size = 64  # at 32 its last map has one position
    method = Apm(exact_resnet, **SMALL, similarity=similarity, grid_weight=grid_weight,
                 pooling=pooling)
    features, maps = features_of(exact_resnet, images)
    student = torch.stack([
        adapt_one(method, image, feature, grid_targets(positions[None], GRID)[0], grid_weight,
                  pooling)
        for image, feature, positions in zip(images, features, maps)])
    read = student
    if similarity == "cosine":
        read = student / student.norm(dim=1, keepdim=True) * features.norm(dim=1, keepdim=True)
    head = exact_resnet.net.get_classifier()
    assert head.bias.abs().max() > 0.01
    expected = read @ head.weight.T + head.bias
    assert (method(images) - expected).abs().max() < 1e-8
    assert torch.equal(method.details["teacher_prediction"], exact_resnet(images).argmax(1))
    assert torch.allclose(method.details["cosine"], F.cosine_similarity(student, features))


@pytest.mark.parametrize("similarity", ["own", "cosine"])
@pytest.mark.parametrize("make, layer", [
    (vit, ""), (lambda: vit(class_token=False, global_pool="avg"), ""), (Plain, ""),
    (Plain, "hidden"), (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), "")],
    ids=["vit", "vit-avg", "plain", "plain-hidden", "linear"])
def test_a_student_that_is_the_teacher_has_its_logits(make, layer, similarity, images, monkeypatch):
    """The head, or the network behind a named layer, classifies the teacher's own feature."""
    teacher = classifier(make)
    method = Apm(teacher, **SMALL, feature_layer=layer, similarity=similarity)
    monkeypatch.setattr(method, "_adapt", lambda images, teacher: teacher.features)
    assert torch.allclose(method(images), teacher(images), rtol=0, atol=1e-12)
    assert (method.details["cosine"] > 1 - 1e-12).all()


@pytest.mark.parametrize("target", ["raw", "unit"])
def test_a_student_that_is_a_clip_has_its_logits(digits_clip, digits_test, target, monkeypatch):
    images = digits_test[0][:4]
    method = Apm(digits_clip, **SMALL, target=target)
    monkeypatch.setattr(method, "_adapt",
                        lambda images, teacher: method._scaled(teacher.features))
    assert torch.allclose(method(images), digits_clip(images), rtol=0, atol=1e-4)
    assert (method.details["cosine"] > 1 - 1e-6).all()


@pytest.mark.slow
def test_many_steps_give_a_classifiers_answers(digits_resnet, digits_test):
    images = digits_test[0][:12]
    keywords = dict(image_size=32, patch=8, code=64, hidden=(512, 512, 256), lr=1e-3)
    cosines = []
    for steps in (0, 10, 60):
        method = Apm(digits_resnet, **keywords, steps=steps)
        logits = method(images)
        cosines.append(method.details["cosine"].mean().item())
    assert cosines == sorted(cosines) and cosines[-1] > 0.95
    assert torch.equal(logits.argmax(1), digits_resnet(images).argmax(1))


def test_the_classes_of_the_data_set_are_kept(exact_resnet, images):
    some = Classifier(exact_resnet.net, **HALF, image_size=32, keep=[3, 5]).double()
    logits = Apm(Classifier(some.net, **HALF, image_size=32).double(), **SMALL)(images)
    assert torch.equal(Apm(some, **SMALL)(images), logits[:, [3, 5]])


@pytest.mark.slow
def test_a_clips_tower_as_a_classifier_is_that_clip(digits_clip, digits_test):
    """Its features have length one, and its head gives scaled cosines."""
    clip = copy.deepcopy(digits_clip).double()
    images = digits_test[0][:4].double()
    tower = as_classifier(clip).double()
    expected = Apm(clip, **SMALL, target="unit")
    method = Apm(tower, **SMALL, similarity="cosine")
    assert torch.allclose(method(images), expected(images), rtol=0, atol=1e-6)
    assert torch.allclose(method.details["cosine"], expected.details["cosine"], atol=1e-9)


def test_the_layer_that_is_named_is_fitted(images):
    """The layer's output is kept from before an in-place activation changes it."""
    teacher = classifier(Plain)
    hidden = teacher.net.hidden(teacher.net.conv(teacher.prepare(images)).relu().mean((2, 3)))
    found = ClassifierTeacher(teacher, layer="hidden", wants_grid=False)
    assert (hidden < 0).any()
    assert torch.equal(found.encode(images).features, hidden)
    assert torch.equal(found.classify(2 * hidden), teacher.net.head((2 * hidden).relu()))


@pytest.mark.parametrize("make, side", [
    (vit, 4), (lambda: vit(class_token=False, global_pool="avg", fc_norm=False), 4),
    (lambda: vit(reg_tokens=4), 4), (lambda: timm.create_model("resnet10t", num_classes=10), 2)],
    ids=["vit", "vit-avg", "vit-registers", "resnet"])
def test_the_grid_are_the_last_activations(make, side, images):
    teacher = classifier(make, image_size=64 if side == 2 else 32)
    features, grid, _ = ClassifierTeacher(teacher, layer="", wants_grid=True).encode(images)
    last = teacher.net.forward_features(teacher.prepare(images))
    if last.dim() == 3:
        expected = last[:, -side**2:].unflatten(1, (side, side))
    else:
        expected = last.permute(0, 2, 3, 1)
        assert torch.allclose(grid.mean((1, 2)), features)
    assert torch.equal(grid, expected)


@pytest.mark.slow
def test_other_rows_over_the_same_batch_change_nothing(tmp_path):
    """The logits are cached for `source` first, but APM needs the layers to run."""
    row = ("apm BACKBONE classifier IMAGE_SIZE 32 PATCH 8 CODE 32 HIDDEN [64,32] STEPS 3 "
           "LR 0.01")
    found = []
    for folder, methods in (("together", ["source", row]), ("alone", [row])):
        file = tmp_path / f"{folder}.yaml"
        file.write_text(json.dumps({"METHODS": methods, "CORRUPTIONS": ["fog"], "NUM_IMAGES": 20,
                                    "BATCH_SIZE": 10, "OUTPUT_DIR": str(tmp_path / folder)}))
        assert cli.main(["--cfg", str(file)]) == 0
        records = {load_record(path).method: (path, load_record(path))
                   for path in find_records(tmp_path / folder / "cells")}
        found.append({name: load_predictions(*record) for name, record in records.items()})
    together, alone = found
    assert (together["apm"].cosine == alone["apm"].cosine).all()
    assert (together["apm"].teacher_prediction == together["source"].prediction).all()
    table = (tmp_path / "together/table.md").read_text()
    assert re.search(r"\| apm BACKBONE classifier [^|]*\| timm/digits_resnet +\|", table)


def test_surviving_takes_a_classifier(exact_resnet, images):
    fresh, surviving = (cls(exact_resnet, **SMALL) for cls in (Apm, ApmSurviving))
    logits = surviving(images)
    assert torch.allclose(logits[0], fresh(images)[0])
    assert not torch.allclose(logits[1], fresh(images)[1])


@pytest.mark.parametrize("make, keywords, message", [
    (lambda: nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), {},
     "not the output of a linear layer"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Softmax(1)), {},
     "not the output of a linear layer"),
    (Plain, {"feature_layer": "hiden"}, "'hiden': .* no such layer; did you mean 'hidden'"),
    (Plain, {"feature_layer": "conv"}, r"'conv' .* gives \[2, 16, 8, 8\] for 2 images"),
    (Skips, {"feature_layer": "hidden"}, "do not come from its output alone"),
    (Plain, {"grid_weight": 1.0}, "no grid for L_grid"),
    (lambda: vit(class_token=False, global_pool="avg"), {"grid_weight": 1.0}, "no grid"),
    (lambda: timm.create_model("resnet10t", num_classes=10), {"grid_weight": 1.0}, "no grid"),
    (Plain, {"target": "unit", "similarity": "own"}, "use similarity cosine"),
    (Plain, {"trigger": "vit"}, "use trigger conv"),
    (Plain, {"similarity": "cosin"}, "did you mean 'cosine'"),
    (Plain, {"pooling": "attention", "feature_layer": "head"}, "8 heads")])
def test_what_a_network_does_not_have_is_told(make, keywords, message):
    with pytest.raises(UserError, match=message) as told:
        Apm(classifier(make), **SMALL, **keywords)
    assert "\n" not in str(told.value)


def test_a_network_for_images_of_one_size_is_given_it():
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 48**2, 10))  # noqa: E731
    Apm(classifier(make, image_size=48), **SMALL)
    with pytest.raises(UserError, match="does not take images of 32 pixels; give .* image_size"):
        Apm(classifier(make, image_size=None), **SMALL)


def test_a_layer_of_a_clip_is_told(digits_clip):
    with pytest.raises(UserError, match="is for a classifier"):
        Apm(digits_clip, **SMALL, feature_layer="visual")


def test_the_lines_of_the_docs_run(digits_test):
    text = (ROOT / "docs/apm.md").read_text()
    code, = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    known = {"net": Plain(), "images": digits_test[0][:2]}
    exec(code, known)
    assert known["logits"].shape == (2, 10)
