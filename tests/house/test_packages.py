"""What is published: the sdist and the wheel, installed apart and run from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from places import ROOT
from tta_apm import config

pytestmark = pytest.mark.slow

# Folders of the repository, and the packages that they install as.
PACKAGES = {"tta_apm": "tta_apm", "baselines": "tta_apm_baselines", "configs": "tta_apm_configs"}
QUICK = "cfgs/digits_c/quick.yaml"
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*words: object, cwd: Path, **settings: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], cwd=cwd, text=True, capture_output=True,
                          env=environment | settings)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of an sdist, and of the wheel that is built from it; the network is not used."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, tree / folder,
                        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in FILES:
        shutil.copy(ROOT / file, tree)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", cwd=tree)
    return tree / "dist"


def wanted() -> set[str]:
    """Every file of the packages, under its installed name."""
    return {f"{package}/{file.relative_to(ROOT / folder)}"
            for folder, package in PACKAGES.items() for file in (ROOT / folder).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts}


def test_the_wheel_holds_every_file_and_nothing_else(built):
    wheel, = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == wanted()
    suffixes = {Path(name).suffix for name in names}
    assert {".safetensors", ".json", ".csv", ".bib", ".yaml", ".typed"} <= suffixes


def test_the_sdist_holds_what_a_build_needs(built):
    sdist, = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    installed_as = {package: folder for folder, package in PACKAGES.items()}
    sources = {"/".join([installed_as[name.split("/")[0]], *name.split("/")[1:]])
               for name in wanted()}
    assert sources | set(FILES) <= names


def test_the_wheel_runs_the_quick_config_from_another_folder(built, tmp_path):
    """In an environment of its own that sees the libraries of this one, but not this tree."""
    venv.create(tmp_path / "venv", with_pip=False)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    wheel, = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps",
        "--no-index", wheel, cwd=tmp_path)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(scripts / "python", "-c", ask, cwd=tmp_path).strip())
    # Only their names: the .pth files in these folders (an editable install) are not read.
    libraries = [folder for folder in sys.path if folder.endswith("-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    used = run(scripts / "python", "-c", "import tta_apm; print(tta_apm.__file__)", cwd=elsewhere)
    assert Path(used.strip()).is_relative_to(site)
    run(scripts / "tta-apm", "--cfg", QUICK, "NUM_IMAGES", "4", "BATCH_SIZE", "4", "CORRUPTIONS",
        "[fog]", "OUTPUT_DIR", "results", cwd=elsewhere, XDG_CACHE_HOME=str(tmp_path / "cache"))
    rows = config.rows(config.load(QUICK))
    cells = list((elsewhere / "results" / "cells").rglob("fog-5-*.json"))
    assert len(cells) == len(rows) > 10
    table = (elsewhere / "results" / "table.md").read_text(encoding="utf-8")
    assert all(row.method in table for row in rows)
