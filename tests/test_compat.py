"""Compat: robustbench imports although its dependency goes by another name."""

import sys

import pytest

from tta_apm import compat
from tta_apm.errors import UserError


def test_robustbench_imports():
    robustbench = compat.import_robustbench()
    assert callable(robustbench.load_model)
    assert compat.import_robustbench() is robustbench


def test_attack_library_is_imported_once_under_both_names():
    compat.import_robustbench()
    attack = sys.modules["autoattack"]
    assert callable(attack.AutoAttack)
    if "pyautoattack" in sys.modules:
        assert attack is sys.modules["pyautoattack"]


def test_missing_dependency_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(UserError, match="robustbench does not import .*setuptools<82"):
        compat.import_robustbench()
