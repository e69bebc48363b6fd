"""The shape of the code: which way imports point, that names stay out, lint and types."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT
from tta_apm.registry import DATASETS, METHODS
from tta_apm.signature import RUN_KEYWORDS

DRAWN = ROOT / "docs/architecture.md"
EVERYTHING = "everything"


def read_arrows(text: str) -> dict[str, set[str]]:
    """What each part may import besides itself, by the table of docs/architecture.md."""
    arrows: dict[str, set[str]] = {}
    base: set[str] = set()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        parts = re.findall(r"`(\w+)`", cells[0]) if len(cells) == 3 else []
        if parts and cells[0].startswith("the base"):
            base.update(parts)
        for part in parts:
            arrows[part] = {EVERYTHING} if cells[1] == EVERYTHING \
                else set(re.findall(r"`(\w+)`", cells[1]))
    return {part: known | base for part, known in arrows.items()}


ARROWS = read_arrows(DRAWN.read_text(encoding="utf-8"))

# Of methods, of data sets and of their families; not `source`, which is also a keyword of methods.
NAMES = {*METHODS.names(), *DATASETS.names(), "cifar", "imagenet"} - RUN_KEYWORDS


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
def test_imports_are_those_that_the_docs_draw(file, part):
    for name in imports(file):
        package, _, rest = name.partition(".")
        # Nor does one baseline import another: a cell's hash of the code covers its own file only.
        assert package != "tta_apm_baselines", name
        if package == "tta_apm" and rest != "__version__" and rest:
            known = rest.split(".")[0]
            assert known == part or ARROWS[part] & {known, EVERYTHING}, f"{part} imports {name}"


@pytest.mark.slow
def test_the_docs_draw_every_part_and_no_arrow_that_nobody_needs():
    needed: dict[str, set[str]] = {}
    for parameter in modules():
        file, part = parameter.values
        needed.setdefault(part, set()).update(
            name.split(".")[1] for name in imports(file) if name.startswith("tta_apm."))
    assert set(needed) == set(ARROWS)
    base = set.intersection(*ARROWS.values())
    for part, known in ARROWS.items():
        assert known - base - {EVERYTHING} <= needed[part], part


@pytest.mark.slow
def test_no_kit_imports_an_annex_and_nobody_imports_a_private_name():
    annexes = {"fields", "cost", "training", "interop"}
    for parameter in modules():
        file, part = parameter.values
        for name in imports(file):
            words = name.split(".")
            if words[0] != "tta_apm" or words[1:] == ["__version__"]:
                continue
            assert not any(word.startswith("_") for word in words), name
            if part not in {*annexes, "cli", "commands"}:
                assert not annexes & set(words[1:2]), name


@pytest.mark.parametrize("folder", ["report", "interop"])
def test_what_makes_tables_and_exports_knows_records_only_and_no_torch(folder):
    for file in (ROOT / "tta_apm" / folder).glob("*.py"):
        for name in imports(file):
            assert not name.startswith("torch")
            if name.startswith("tta_apm.bench"):
                assert name.split(".")[2] == "records", name


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
def test_nobody_tests_a_name(file, part):
    """No `if "cifar" in dataset_name`: ask the object."""
    assert not compared(file.read_text()) & NAMES


# Named, since below the root there may be a virtual environment. mypy's are in setup.cfg.
@pytest.mark.slow
@pytest.mark.lint
@pytest.mark.parametrize("tool", [
    ["flake8", "tta_apm", "baselines", "tests", "benchmarks", "examples", "run.py", "setup.py"],
    ["mypy"]], ids=lambda tool: tool[0])
def test_lint_and_types(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
