"""What is published: the sdist and the wheel, installed apart and run from another folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
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


@pytest.fixture(scope="module")
def scripts(built, tmp_path_factory) -> Path:
    """Programs of an environment with the wheel and the libraries of this one, but not this tree.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    wheel, = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps",
        "--no-index", wheel, cwd=environment)
    # Only their names: the .pth files in these folders (an editable install) are not read.
    libraries = [folder for folder in sys.path if folder.endswith("-packages")]
    (_site(scripts) / "libraries.pth").write_text("\n".join(libraries))
    return scripts


def _site(scripts: Path) -> Path:
    """Where an environment has its packages."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(scripts / "python", "-c", ask, cwd=scripts).strip())


def test_the_wheel_runs_the_quick_config_from_another_folder(scripts, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    used = run(scripts / "python", "-c", "import tta_apm; print(tta_apm.__file__)", cwd=elsewhere)
    assert Path(used.strip()).is_relative_to(_site(scripts))
    run(scripts / "tta-apm", "--cfg", QUICK, "NUM_IMAGES", "4", "BATCH_SIZE", "4", "CORRUPTIONS",
        "[fog]", "OUTPUT_DIR", "results", cwd=elsewhere, XDG_CACHE_HOME=str(tmp_path / "cache"))
    rows = config.rows(config.load(QUICK))
    cells = list((elsewhere / "results" / "cells").rglob("fog-5-*.json"))
    assert len(cells) == len(rows) > 10
    table = (elsewhere / "results" / "table.md").read_text(encoding="utf-8")
    assert all(row.method in table for row in rows)


# robustbench in a plain installation, as docs/hosts/results.md says

def blocks_of(name: str) -> str:
    """The code block of the page that holds `name`, lines that go on as one."""
    page = (ROOT / "docs/hosts/results.md").read_text(encoding="utf-8")
    block, = [block for block in re.findall(r"^```\w*\n(.*?)^```", page, re.S | re.M)
              if name in block]
    return re.sub(r"\\\n\s*", "", block)


def test_the_docs_command_makes_the_page_of_robustbench(scripts, tmp_path):
    """From a folder like a clone: the installed package, and a template, which that has not."""
    clone = tmp_path / "clone"
    package = importlib.util.find_spec("robustbench").submodule_search_locations[0]
    shutil.copytree(package, clone / "robustbench", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "robustbench/leaderboard/leaderboard.html.j2").write_text(
        "{% for model in models %}{{ model.name }} {{ model[acc_field] }} %{% endfor %}")
    folder = tmp_path / "model_info/imagenet/corruptions"
    folder.mkdir(parents=True)
    (folder / "Mine.json").write_text('{"name": "mine", "corruptions_acc": "29.01"}')
    command, = [line for line in blocks_of("leaderboard.template").splitlines()
                if line.startswith("python ")]
    printed = run(scripts / "python", "-W", "ignore", *shlex.split(command)[1:], cwd=clone)
    assert printed.strip() == "mine 29.01 %"


def test_robustbench_imports_by_the_lines_of_the_docs(scripts, tmp_path):
    run(scripts / "python", "-W", "ignore", "-c", blocks_of("import_robustbench()"), cwd=tmp_path)


def test_robustbench_imports_by_itself_beside_a_module_autoattack(scripts, tmp_path):
    """Which is all that it lacks; a copy stands for what pip installs from its repository."""
    shutil.copytree(importlib.util.find_spec("pyautoattack").submodule_search_locations[0],
                    tmp_path / "autoattack")
    run(scripts / "python", "-W", "ignore", "-c", "from robustbench.utils import load_model",
        cwd=tmp_path)
