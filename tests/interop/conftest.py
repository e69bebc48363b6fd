"""Fixtures of the tests of imported rows."""

from __future__ import annotations

import pytest

from tta_apm.interop import logs


@pytest.fixture
def ours(write_cell):
    """Write a cell of 10 images, `right` of them classified correctly."""
    return lambda corruption, right, row="tent": write_cell(row, corruption, right,
                                                            dataset="cifar10_c")


@pytest.fixture
def log(tmp_path):
    """Write a log and read it."""
    def read(text, name="run.txt", **options):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return logs.read(file, **options)
    return read
