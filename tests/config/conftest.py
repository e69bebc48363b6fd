"""What the tests of configs share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "some.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name
    return write
