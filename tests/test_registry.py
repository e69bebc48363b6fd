"""Registry: what is known of an entry point's class before it is imported, and after."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from tta_apm.registry import Registry

STRANGER = """
from tta_apm import method
from tta_apm.method import Method

class Parent(Method):
    needs = "clip"
    scope = "stream"
    survives = "weights"
    def __init__(self, backbone, *, gain=2.0):
        super().__init__()

class Plain(method.Method):
    def __init__(self, backbone, *, gain=3.0):
        super().__init__()

class Child(Parent):
    def __init__(self, backbone, *, gain=4.0):
        super().__init__(backbone, gain=gain)

class Half(Parent):
    needs = "mae"
    def __init__(self, backbone, *, gain=5.0):
        super().__init__(backbone, gain=gain)

class Silent(Parent):
    needs = "clip"
    scope = "stream"
    def __init__(self, backbone, *, gain=6.0):
        super().__init__(backbone, gain=gain)

class Whole(Parent):
    needs = "classifier"
    scope = "batch"
    def __init__(self, backbone, *, gain=7.0):
        super().__init__(backbone, gain=gain)
"""


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """The classes of a stranger's module, each under its own name."""
    (tmp_path / "stranger_classes.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("some.group", "method")
    registry._entry_points = {
        name: EntryPoint(name, f"stranger_classes:{name}", "some.group")
        for name in ("Parent", "Plain", "Child", "Half", "Silent", "Whole")}
    yield registry
    sys.modules.pop("stranger_classes", None)


@pytest.mark.parametrize("name, gain, needs, scope, survives, imported", [
    ("Parent", 2.0, "clip", "stream", "weights", False),
    ("Plain", 3.0, "classifier", "image", "", False),
    ("Child", 4.0, "clip", "stream", "weights", True),
    ("Half", 5.0, "mae", "stream", "weights", True),
    ("Silent", 6.0, "clip", "stream", "weights", True),
    ("Whole", 7.0, "classifier", "batch", None, False),
])
def test_what_a_class_inherits_counts(registry, name, gain, needs, scope, survives, imported):
    signature = registry.signature(name)
    assert (signature.defaults, signature.needs, signature.scope) == ({"gain": gain}, needs, scope)
    assert survives is None or signature.attributes.get("survives", "") == survives
    assert ("stranger_classes" in sys.modules) == imported
