"""A stranger's package: one file and one entry point, run in a sweep by config alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tta_apm.bench.records import load_record

pytestmark = pytest.mark.slow  # sweeps, processes or training

METADATA = """
    [metadata]
    name = stranger
    version = 1.0

    [options]
    py_modules = stranger_method

    [options.entry_points]
    tta_apm.methods =
        sharpened = stranger_method:Sharpened
"""

METHOD = '''
    """A method that knows nothing of tta_apm but its interface."""
    import torch
    from tta_apm.method import Method


    class Sharpened(Method):
        needs = "clip"
        scope = "image"

        def __init__(self, backbone, *, gain=2.0):
            super().__init__()
            self.backbone = backbone
            self.gain = gain

        def forward(self, images):
            return self.gain * self.backbone(images)

        def reset(self):
            pass
'''


def test_a_foreign_package_joins_a_sweep_by_config_alone(tmp_path):
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    (package / "setup.cfg").write_text(textwrap.dedent(METADATA).lstrip())
    (package / "setup.py").write_text("import setuptools\nsetuptools.setup()\n")
    (package / "stranger_method.py").write_text(textwrap.dedent(METHOD).lstrip())
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation",
                    "--no-deps", "--target", site, package], check=True, timeout=120)
    config = tmp_path / "foreign.yaml"
    config.write_text("METHODS: [clip_zero_shot, sharpened]\nSHARPENED: {GAIN: 3}\n"
                      "CORRUPTIONS: [fog]\nNUM_IMAGES: 20\n")
    results = tmp_path / "results"
    script = f"import sys; sys.path.insert(0, {str(site)!r}); from tta_apm.cli import main; " \
             "sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", script, "--cfg", config, "OUTPUT_DIR", results],
                          text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    records = {record.method: record for record in map(load_record, results.rglob("*.json"))}
    assert records["sharpened"].hyper_parameters == {"gain": 3.0}
    assert records["sharpened"].num_correct == records["clip_zero_shot"].num_correct
    assert Path(results / "table.md").read_text().count("sharpened")
