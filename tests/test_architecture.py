"""The shape of the code: which way imports point, that names stay out, lint and types."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tta_apm.registry import DATASETS, METHODS, RUN_KEYWORDS

ROOT = Path(__file__).parents[1]

# What each part may know of tta_apm, besides itself. Nothing on one floor reaches up.
FLOOR = {"cache", "errors", "lock", "names", "progress", "registry", "writing"}
MODELS = FLOOR | {"batch_norm", "entropy", "method", "episodes", "precision", "randomness",
                  "backbones"}
BENCH = MODELS | {"config", "data", "device", "bench"}
ALLOWED = {
    "cache": set(),
    "errors": set(),
    "console": set(),
    "lock": {"errors", "writing"},
    "progress": set(),
    "names": set(),
    "registry": {"errors", "names"},
    "method": FLOOR,
    "entropy": set(),
    "batch_norm": set(),
    "writing": {"errors"},
    "values": {"errors"},
    "yaml_files": {"errors", "values"},
    "plugins": {"errors"},
    "episodes": {"errors"},
    "precision": {"errors"},
    "device": {"errors"},
    "randomness": set(),
    "views": set(),
    "audit": {"method"},
    "compat": {"errors"},
    "data": FLOOR | {"compat"},
    "backbones": FLOOR | {"compat", "data", "plugins", "views"},
    "toolbox": MODELS,
    "apm": MODELS | {"audit", "data", "device", "values", "views"},
    "config": FLOOR | {"data", "backbones", "plugins", "values", "yaml_files"},
    "bench": BENCH,
    "hosts": MODELS | {"compat", "data"},
    "report": {"errors", "names", "bench", "data", "values", "writing"},
    "commands": BENCH | {"apm", "report"},
    "api": BENCH | {"report"},
    "cli": BENCH | {"console", "report"},
    "baselines": MODELS | {"audit", "toolbox", "views"},
}

# Of methods, of data sets and of their families; not `source`, which is also a keyword of methods.
NAMES = {*METHODS.names(), *DATASETS.names(), "cifar", "imagenet"} - RUN_KEYWORDS
# Files that own names: RobustBench's folders are called so.
OWNED = {"tta_apm/report/logs.py": {"cifar10", "cifar100", "imagenet"}}


def modules():
    for file in sorted([*(ROOT / "tta_apm").rglob("*.py"), *(ROOT / "baselines").glob("*.py")]):
        parts = file.relative_to(ROOT).with_suffix("").parts
        part = "baselines" if parts[0] == "baselines" else parts[1]
        if part != "__init__":
            yield pytest.param(file, part, id=str(file.relative_to(ROOT)))


def imports(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("file, part", list(modules()))
def test_imports_point_down(file, part):
    for name in imports(file):
        package, _, rest = name.partition(".")
        # Nor does one baseline import another: a cell's hash of the code covers its own file only.
        assert package != "tta_apm_baselines", name
        if package == "tta_apm" and rest != "__version__" and rest:
            known = rest.split(".")[0]
            assert known == part or known in ALLOWED[part], f"{part} imports {name}"


def test_report_knows_records_and_statistics_only_and_no_torch():
    for file in (ROOT / "tta_apm/report").glob("*.py"):
        for name in imports(file):
            assert not name.startswith("torch")
            if name.startswith("tta_apm.bench"):
                assert name.split(".")[2] in ("records", "statistics"), name


def compared(text: str) -> set[str]:
    """The strings that a source text compares with, also those inside tuples, lists and sets."""
    sides = [side for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Compare)
             for side in [node.left, *node.comparators]]
    found = set()
    while sides:
        side = sides.pop()
        if isinstance(side, (ast.Tuple, ast.List, ast.Set)):
            sides += side.elts
        elif isinstance(side, ast.Constant) and isinstance(side.value, str):
            found.add(side.value)
    return found


@pytest.mark.parametrize("text", [
    'if "cifar" in dataset: pass', 'if name == "tent": pass', 'x = name not in ["apm", "norm"]',
    'while name in ("a", {"cifar10_c"}): pass'])
def test_names_are_seen_wherever_they_are_compared_with(text):
    assert compared(text) & NAMES


@pytest.mark.parametrize("file, part", list(modules()))
def test_nobody_tests_a_name_outside_the_file_that_owns_it(file, part):
    """No `if "cifar" in dataset_name`: ask the object."""
    owned = OWNED.get(str(file.relative_to(ROOT)), set())
    assert compared(file.read_text()) & NAMES <= owned


# Named, since below the root there may be a virtual environment. mypy's are in setup.cfg.
@pytest.mark.parametrize("tool", [
    ["flake8", "tta_apm", "baselines", "tests", "benchmarks", "run.py"], ["mypy"]],
    ids=lambda tool: tool[0])
def test_lint_and_types(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
