"""The field a student learns: columns in any order, interpolation, embedding."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from small_student import FEATURE_DIM, GRID, SMALL
from tta_apm.errors import UserError
from tta_apm.fields.checkpoint import build_student
from tta_apm.fields.embedding import embed
from tta_apm.fields.field import Field, decode, field_of, interpolate, running_mean
from tta_apm.fields.pictures import paint


def test_decoding_gives_the_numbers_of_the_plain_student(student, images):
    features, colours = decode(student, student.trigger(images))
    for image, of_image, colour in zip(images, features, colours):
        inputs = student.unfold(image)
        assert torch.allclose(of_image, student.columns(inputs), atol=1e-12)
        assert torch.allclose(colour, student.colours(inputs, of_image), atol=1e-12)


def test_columns_come_in_any_order_as_in_the_whole_field(student, images):
    field = field_of(student, images[0])
    whole = field.features().view(GRID, GRID, FEATURE_DIM)
    positions = [(5, 0), (0, 5), (3, 2), (5, 0)]
    columns = list(field.query(iter(positions)))
    assert [(column.x, column.y) for column in columns] == positions
    for column in columns:
        assert torch.allclose(column.feature, whole[column.y, column.x], atol=1e-12)
        assert torch.allclose(column.colour.clamp(0, 1), field.colours()[column.y, column.x])


def test_a_query_computes_nothing_before_it_is_asked(student, images):
    def positions():
        yield 0, 0
        raise AssertionError("the second position was asked for too early")
    assert next(field_of(student, images[0]).query(positions())).x == 0


@pytest.mark.parametrize("position", [(GRID, 0), (0, GRID), (-1, 0)])
def test_a_position_outside_the_grid_is_refused(student, images, position):
    with pytest.raises(UserError, match=r"no column at .*from 0 to 5"):
        list(field_of(student, images[0]).query([position]))


def test_running_mean_is_the_mean(student, images):
    field = field_of(student, images[0])
    columns = field.query((x, y) for x in range(GRID) for y in range(GRID))
    mean = running_mean(column.feature for column in columns)
    assert torch.allclose(mean, field.features().mean(0), atol=1e-12)


MEMORY = """
import itertools, resource, torch
from tta_apm.fields.checkpoint import build_student
from tta_apm.fields.field import Field, running_mean
from tta_apm.fields.config import PretrainConfig

torch.set_num_threads(1)
config = PretrainConfig(image_size=8, patch=1, code=8, hidden=(8,))
student = build_student(config, feature_dim=20000)
field = Field(student, torch.zeros(64))

def megabytes_after(count):
    positions = itertools.islice(itertools.cycle([(1, 2), (7, 0), (3, 3)]), count)
    running_mean(column.feature for column in field.query(positions))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = megabytes_after(100)
print(megabytes_after(1500) - few)  # 112 MB, if their features were kept
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_peak_memory_does_not_grow_with_the_number_of_columns():
    done = subprocess.run([sys.executable, "-c", MEMORY], text=True, capture_output=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20


def test_interpolation_ends_at_the_two_reconstructions(student, images):
    start, end = (field_of(student, image) for image in images)
    fields = list(interpolate(start, end, 10))
    assert len(fields) == 11
    assert torch.equal(fields[0].colours(), start.colours())
    assert torch.equal(fields[-1].colours(), end.colours())
    expected = start.trigger + 3 * (end.trigger - start.trigger) / 10
    assert torch.allclose(fields[3].trigger, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method, dimensions", [("pca", 1), ("pca", 3), ("tsne", 1), ("tsne", 3)])
def test_an_embedding_keeps_islands_apart(method, dimensions):
    island = torch.arange(36) // 18
    features = torch.randn(36, 7, generator=torch.Generator().manual_seed(0)) + 20 * island[:, None]
    embedded = embed(features, method, dimensions, seed=0)
    assert embedded.shape == (36, dimensions)
    assert embedded.min() >= 0 and embedded.max() <= 1
    colours = paint(embedded.reshape(6, 6, dimensions))
    assert colours.shape == (6, 6, 3)
    halves = embedded[:18], embedded[18:]
    gap = np.linalg.norm(halves[0].mean(0) - halves[1].mean(0))
    assert gap > max(half.std(0).max() for half in halves)


def test_a_student_without_rgb_head_cannot_reconstruct():
    cfg = replace(SMALL, rgb_weight=0.0, cls_weight=1.0, teacher="timm/test_vit")
    student = build_student(cfg, FEATURE_DIM)
    with pytest.raises(UserError, match="no RGB head"):
        Field(student, torch.zeros(GRID**2)).colours()
