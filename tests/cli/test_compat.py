"""Compat: robustbench imports although its dependency goes by another name."""

import importlib.util
import subprocess
import sys

import pytest

from tta_apm import compat
from tta_apm.errors import UserError


def test_robustbench_imports():
    robustbench = compat.import_robustbench()
    assert callable(robustbench.load_model)
    assert compat.import_robustbench() is robustbench


def test_attack_library_is_imported_once_under_both_names(monkeypatch):
    for name in ("autoattack", "autoattack.state"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # none of its own
    compat.alias_pyautoattack()
    assert callable(sys.modules["autoattack"].AutoAttack)
    for name in ("autoattack", "autoattack.state"):
        assert sys.modules[name] is sys.modules["py" + name]


def test_missing_dependency_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(UserError, match="robustbench does not import .*setuptools<82"):
        compat.import_robustbench()


@pytest.mark.slow
def test_a_module_of_robustbench_runs_by_our_door(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom robustbench.utils import load_model\n"
        "print(load_model.__name__, sys.argv[1:], __name__)\n")
    run = [sys.executable, "-W", "ignore", "-m"]
    done = subprocess.run([*run, "tta_apm.compat", "mine", "--x"], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.stdout == "load_model ['--x'] __main__\n", done.stderr
    done = subprocess.run([*run, "tta_apm.compat"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and "arguments are required: module" in done.stderr
