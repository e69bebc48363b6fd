"""The pages of docs/ build, with no dead link and no name that the reference cannot find."""

from __future__ import annotations

import subprocess
import sys

import pytest

from places import ROOT

pytestmark = pytest.mark.slow  # sweeps, processes or training


def test_the_pages_build_strictly(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-d",
                           str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "load_backbone" in reference and "class_names" in reference
