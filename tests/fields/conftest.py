"""Fixtures of the tests of fields."""

from __future__ import annotations

import pytest
import torch

from small_student import CHINA, FEATURE_DIM, FLOWER, SMALL
from tta_apm.fields.checkpoint import build_student, save_student
from tta_apm.fields.photos import find_image, read_image


@pytest.fixture(scope="module")
def student():
    return build_student(SMALL, FEATURE_DIM).double()


@pytest.fixture(scope="module")
def images():
    return torch.stack([read_image(find_image(name), SMALL.image_size)
                        for name in (CHINA, FLOWER)]).double()


@pytest.fixture
def file(tmp_path):
    save_student(tmp_path / "student.safetensors", build_student(SMALL, FEATURE_DIM), SMALL)
    return tmp_path / "student.safetensors"
