"""Fixtures of the tests of sweeps and of their records."""

from __future__ import annotations

import os

import pytest

from sweeps import SMALL
from tta_apm import cli


@pytest.fixture
def sweep(tmp_path, capsys):
    """Run a sweep into a folder of its own; gives exit code, folder and what was printed."""
    def sweep(methods: str, *overrides: str, folder: str = "results", flags: tuple = ()):
        file = tmp_path / "sweep.yaml"
        file.write_text("CORRUPTIONS: [fog, contrast]\n")
        keys = dict(zip(SMALL[::2], SMALL[1::2])) | dict(zip(overrides[::2], overrides[1::2]))
        code = cli.main(["--cfg", str(file), *flags, "METHODS", methods, "OUTPUT_DIR",
                         str(tmp_path / folder), *(word for item in keys.items() for word in item)])
        return code, tmp_path / folder, capsys.readouterr()
    return sweep


@pytest.fixture
def run(tmp_path, capsys):
    """Run a sweep of digits; gives its exit code and what it printed."""
    def call(*words, folder=tmp_path / "results", cfg="cfgs/digits_c/source.yaml"):
        flags = [word for word in words if word.startswith("--")]
        keys = [word for word in words if not word.startswith("--")]
        pairs = {"CORRUPTIONS": "[contrast]", "NUM_IMAGES": "6", "BATCH_SIZE": "6",
                 "OUTPUT_DIR": str(folder)} | dict(zip(keys[::2], keys[1::2]))
        exit_code = cli.main(["--cfg", cfg, *flags, *(word for pair in pairs.items()
                                                      for word in pair)])
        return exit_code, capsys.readouterr()
    return call


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("HOME", os.environ.get("HOME", "/nowhere"))
