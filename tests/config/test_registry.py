"""Registry: what is known of an entry point's class before it is imported, and after."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from configparser import ConfigParser
from importlib.metadata import EntryPoint, entry_points

import pytest
import tta_apm_baselines

import tta_apm.apm
from places import ROOT
from tta_apm.errors import UserError
from tta_apm.method import Method
from tta_apm.registry import DATASETS, METHODS, Registry

STRANGER = """
from tta_apm import method
from tta_apm.errors import UserError
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


@pytest.mark.parametrize("text, told", [
    ("1/0", "ZeroDivisionError: division by zero"), ("def f(:", "SyntaxError: "),
    ("import sys\nsys.exit(3)", "SystemExit: 3"), ("", "AttributeError: "),
    ("raise GeneratorExit", "GeneratorExit: no message"), ("Mine = 5", "'mine' is not a class: 5"),
    ("\xff".encode("latin-1"), "SyntaxError: ")])
@pytest.mark.parametrize("in_package", [False, True])
def test_whatever_a_package_of_others_raises_is_a_sentence(
        tmp_path, monkeypatch, text, told, in_package):
    text = text if isinstance(text, bytes) else text.encode()
    name = f"stranger_{abs(hash((text, in_package)))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_bytes(text if in_package else b"")
    (tmp_path / name / "mine.py").write_bytes(text)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("some.group", "method")
    registry._entry_points = {"mine": EntryPoint("mine", f"{name}.mine:Mine", "some.group")}
    with pytest.raises(UserError) as caught:
        registry.signature("mine")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    if "Error:" in told and text:
        assert name in str(caught.value).split("does not load")[1]


def test_every_method_that_we_wrote_is_registered_and_no_other():
    """Against the classes in our folders, and against setup.cfg."""
    written = set()
    for package in (tta_apm_baselines, tta_apm.apm):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            written |= {f"{found.name}:{name}" for name, cls in vars(module).items()
                        if inspect.isclass(cls) and issubclass(cls, Method)
                        and cls.__module__ == found.name and not inspect.isabstract(cls)}
    assert {point.value for point in ours("tta_apm.methods").values()} == written
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for group, registry in (("tta_apm.methods", METHODS), ("tta_apm.datasets", DATASETS)):
        lines = setup["options.entry_points"][group].strip().splitlines()
        declared = dict(line.split(" = ") for line in lines)
        assert {name: point.value for name, point in ours(group).items()} == declared
        assert declared.keys() <= set(registry.names())


def ours(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)
            if point.dist is not None and point.dist.name == "tta-apm"}


@pytest.mark.parametrize("name", ours("tta_apm.datasets"))
def test_every_data_set_that_we_declare_loads(name):
    assert callable(DATASETS.load(name))
