"""APM against a plain implementation, and facts of the paper, e.g. parameter counts."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.apm.fast import FastStudent
from tta_apm.apm.method import PRESETS, Apm
from tta_apm.apm.student import MEAN, STD, Student, positional_code, sample_weights
from tta_apm.bench.evaluate import to_device
from tta_apm.data.dataset import Domain
from tta_apm.data.digits import digits_c
from tta_apm.errors import UserError

SMALL = dict(image_size=32, patch=8, code=32, hidden=(64, 48, 32), lr=3e-3, steps=5)


@pytest.fixture(scope="module")
def teacher(digits_clip):
    return digits_clip


@pytest.fixture(scope="module")
def images() -> Tensor:
    data = digits_c(data_dir="", frost_dir=None)
    pixels = data.images(Domain("digits_c", "gaussian_noise", 5), torch.arange(12).numpy())
    return to_device(pixels, torch.device("cpu"))


def adapt_one(method: Apm, student: Student, image: Tensor, teacher_feature: Tensor) -> Tensor:
    """A plain implementation for one image; returns the student's feature [D]."""
    size = (method.image_size, method.image_size)
    if image.shape[-2:] != size:
        image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    mean = torch.tensor(MEAN, dtype=image.dtype).view(3, 1, 1)
    std = torch.tensor(STD, dtype=image.dtype).view(3, 1, 1)
    image = (image - mean) / std
    target = teacher_feature
    if method.target == "unit":
        target = target / target.norm()
    optimizer = torch.optim.Adam(student.parameters(), lr=method.lr)
    for _ in range(method.steps):
        optimizer.zero_grad()
        F.mse_loss(student(image), target).backward()
        optimizer.step()
    return student(image).detach()


def student_of(method: Apm, keywords: dict, feature_dim: int, seed: int = 42) -> Student:
    hidden, pooling = PRESETS[keywords.get("preset", "paper")]
    return sample_weights(Student(
        grid=keywords["image_size"] // keywords["patch"], patch=keywords["patch"],
        kernels=keywords.get("kernels", 1), code=keywords["code"],
        hidden=keywords.get("hidden", hidden), feature_dim=feature_dim,
        pooling=keywords.get("pooling", pooling)), seed)


def reference_logits(method: Apm, keywords: dict, images: Tensor) -> Tensor:
    features = method.backbone.encode_image(images)
    student = student_of(method, keywords, features.shape[1]).to(images.dtype)
    out = torch.stack([adapt_one(method, copy.deepcopy(student), image, feature)
                       for image, feature in zip(images, features)])
    return method.backbone.classify(out)


@pytest.mark.slow
@pytest.mark.parametrize("keywords", [
    SMALL,
    {**SMALL, "pooling": "attention"},
    {**SMALL, "preset": "slim"},
    {**SMALL, "kernels": 3, "target": "unit"},
    {**SMALL, "image_size": 48, "patch": 12},
], ids=["mean", "attention", "slim", "kernels-unit", "resized"])
def test_equals_the_reference_in_float64(teacher, images, keywords):
    teacher64 = copy.deepcopy(teacher).double()
    method = Apm(teacher64, **keywords)
    logits = method(images[:4].double())
    expected = reference_logits(method, keywords, images[:4].double())
    assert (logits - expected).abs().max() < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_equals_the_reference_in_float32(teacher, images, pooling):
    keywords = {**SMALL, "pooling": pooling, "steps": 20}
    method = Apm(teacher, **keywords)
    logits, expected = method(images), reference_logits(method, keywords, images)
    assert (logits - expected).abs().max() < 1e-4
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


def count(feature_dim: int, **keywords) -> int:
    """The number of weights of a student in the paper's size, for a preset or other widths."""
    hidden, pooling = PRESETS[keywords.pop("preset", "paper")]
    with torch.device("meta"):
        student = Student(**{**dict(grid=32, patch=14, kernels=1, code=1024, hidden=hidden,
                                    feature_dim=feature_dim, pooling=pooling), **keywords})
    return sum(parameter.numel() for parameter in student.parameters())


RGB_HEAD = 256 + 256 * 256 + 256 + 256 * 3 + 3  # and 256 weights for each entry of its input


@pytest.mark.parametrize("feature_dim, expected", [
    (1024, 53_494_349), (768, 53_231_949), (512, 52_969_549)])
def test_parameter_counts_of_paper(feature_dim, expected):
    assert count(feature_dim) == expected
    assert count(feature_dim, rgb=True) == expected + 256 * (2048 + feature_dim) + RGB_HEAD


@pytest.mark.parametrize("feature_dim, authors", [(768, 22_822_224), (1024, 24_986_448)])
def test_parameter_counts_of_slim(feature_dim, authors):
    """With attention, query and RGB head, but without the authors' LayerNorm(1024), which nothing
    uses: their published counts have its 2,048 weights too."""
    assert count(feature_dim, preset="slim", rgb=True) + 2 * 1024 == authors


def test_parameter_counts_of_slim_without_heads():
    assert count(768, preset="slim", pooling="mean") == 19_669_325


def test_parameter_counts_of_other_columns():
    """More kernels widen T, I_xy adds a value per kernel, T_vit replaces the convolution."""
    conv = 3 * 14 * 14 + 1
    assert count(1024, kernels=3) - count(1024) == 2 * (1024 * 4096 + conv)
    assert count(1024, kernels=3, local_patch=True) - count(1024, kernels=3) == 3 * 4096
    assert count(1024, given_trigger_dim=1024) == count(1024) - conv
    assert count(1024, given_trigger_dim=1024, local_patch=True) == count(1024, local_patch=True)


def test_table_9_ladder():
    """Table 6 with 1 to 6 hidden layers of 4096²: 36 to 120 million; 7 with two narrow layers."""
    ladder = [(2048, 1024)] + [(4096,) * n + (4096, 2048, 1024) for n in range(1, 7)]
    millions = [int(count(768, hidden=hidden) / 1e6) for hidden in ladder]
    assert millions == [7, 36, 53, 70, 86, 103, 120]


def test_columns_share_the_trigger_and_differ_in_their_code():
    student = sample_weights(Student(
        grid=4, patch=8, kernels=2, code=16, hidden=(8,), feature_dim=8, pooling="mean"), 0)
    inputs = student.unfold(torch.randn(3, 32, 32))
    assert inputs.shape == (16, 2 * 16 + 16)
    assert (inputs[:, :32] == inputs[0, :32]).all()
    assert (inputs[:, 32:] == positional_code(4, 16).flatten(0, 1)).all()


def test_positional_code_is_the_sinusoid_of_column_and_row():
    code = positional_code(5, 8)
    x, y, slow = 3.0, 2.0, 10000 ** (-2 / 4)
    angles = torch.tensor([x, x, x * slow, x * slow, y, y, y * slow, y * slow])
    expected = torch.where(torch.arange(8) % 2 == 0, angles.sin(), angles.cos())
    assert torch.allclose(code[2, 3], expected, atol=1e-6)


def test_columns_in_any_order_and_chunk_and_as_a_running_mean():
    student = sample_weights(Student(
        grid=4, patch=8, kernels=1, code=16, hidden=(32, 16), feature_dim=8,
        pooling="mean"), 0).double()
    with torch.no_grad():
        inputs = student.unfold(torch.randn(3, 32, 32).double())
        whole = student.columns(inputs)
        order = torch.randperm(16)
        shuffled = torch.cat([student.columns(part) for part in inputs[order].split(5)])
        assert torch.allclose(shuffled, whole[order], atol=1e-15)
        mean = torch.zeros(8).double()
        for n, feature in enumerate(shuffled):  # Equation 2
            mean = (n * mean + feature) / (n + 1)
        assert torch.allclose(mean, whole.mean(0), atol=1e-15)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_subset_of_columns_is_that_subset(pooling):
    student = sample_weights(Student(
        grid=4, patch=8, kernels=1, code=16, hidden=(32, 16), feature_dim=8,
        pooling=pooling), 0).double()
    columns = torch.tensor([1, 6, 7, 12])
    fast = FastStudent(student, columns)
    image = torch.randn(3, 32, 32).double()
    weights = {name: value[None] for name, value in fast.initial.items()}
    with torch.no_grad():
        features = student.columns(student.unfold(image)[columns])
        if pooling == "mean":
            expected = features.mean(0)
        else:
            placed = features + student.pooling.code[columns]
            expected = student.pooling.attention(student.pooling.query[None], placed, placed)[0][0]
        assert torch.allclose(fast.pooled(weights, fast.patches(image[None]))[0], expected,
                              atol=1e-12)


def test_all_columns_given_by_name_are_all_columns(teacher, images):
    every = Apm(teacher, **SMALL, columns=16)(images[:3])
    assert torch.equal(every, Apm(teacher, **SMALL)(images[:3]))
    fewer = Apm(teacher, **SMALL, columns=5)(images[:3])
    assert not torch.equal(every, fewer)


def test_chunks_of_episodes_change_nothing(teacher, images):
    method = Apm(teacher, **SMALL)
    method.chunk = 12
    together = method(images)
    for size in (1, 5):
        method.chunk = size
        assert torch.allclose(method(images), together, atol=1e-4)


def test_the_teacher_runs_once_per_image_and_stays_as_it_was(teacher, images):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen = []
    handle = teacher.model.visual.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0])))
    method = Apm(teacher, **SMALL)
    method.chunk = 5
    method(images)
    handle.remove()
    assert sum(seen) == len(images)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_optimiser_starts_empty_for_every_image(teacher, images, monkeypatch):
    made = []

    class Spy(torch.optim.Adam):
        def __init__(self, leaves, **keywords):
            super().__init__(leaves, **keywords)
            made.append((keywords["lr"], len(self.state), len(list(leaves)[0])))

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    method = Apm(teacher, image_size=32, patch=8, code=32, hidden=(16,), steps=1)
    method.chunk = 5
    method(images)
    assert made == [(1e-4, 0, 5), (1e-4, 0, 5), (1e-4, 0, 2)]


@pytest.mark.slow
def test_the_fit_improves_and_reaches_the_teacher(teacher, images):
    """The loss falls, the cosine exceeds 0.95 before 60 steps, many steps give the teacher's
    predictions."""
    keywords = dict(image_size=32, patch=8, code=64, hidden=(512, 512, 256))
    cosines = []
    for steps in (0, 10, 20, 60):
        method = Apm(teacher, **keywords, steps=steps, lr=1e-3)
        logits = method(images)
        cosines.append(method.details["cosine"].mean().item())
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.95
    assert (logits.argmax(-1) == method.details["teacher_prediction"]).all()
    teacher_logits = teacher(images)
    assert torch.equal(method.details["teacher_prediction"], teacher_logits.argmax(-1))


def test_without_steps_the_student_knows_nothing(teacher, digits_test):
    """Before the first update every image has nearly the same prediction, so accuracy is chance."""
    images, labels = digits_test
    logits = Apm(teacher, **{**SMALL, "steps": 0})(images)
    assert (logits.argmax(-1) == labels).float().mean() < 0.25


def test_the_draw_is_normal_with_the_papers_deviation_and_follows_the_seed():
    def weights(seed):
        student = sample_weights(Student(
            grid=8, patch=4, kernels=1, code=64, hidden=(512,), feature_dim=64,
            pooling="attention"), seed)
        return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    first = weights(42)
    assert torch.equal(first, weights(42)) and not torch.equal(first, weights(43))
    assert abs(first.std().item() - 0.01) < 2e-4 and abs(first.mean().item()) < 2e-4


@pytest.mark.parametrize("keywords, message", [
    ({"preset": "slimm"}, "did you mean 'slim'"),
    ({"pooling": "max"}, "unknown pooling"),
    ({"target": "row"}, "did you mean 'raw'"),
    ({"image_size": 450}, "image_size 450 is not a multiple of patch"),
    ({"code": 1023}, "code 1023 is not a multiple of 4"),
    ({"columns": 2000}, "there are 1024 columns"),
    ({"hidden": ()}, "must be positive"),
    ({"steps": -1}, "steps -1 must be at least 0"),
])
def test_bad_values_are_told(teacher, keywords, message):
    with pytest.raises(UserError, match=message):
        Apm(teacher, **keywords)


def test_attention_needs_heads_that_divide_the_feature(teacher):
    other = copy.deepcopy(teacher)
    other.text_features = F.normalize(torch.randn(10, 60), dim=-1)
    with pytest.raises(UserError, match="8 heads"):
        Apm(other, **SMALL, pooling="attention")
