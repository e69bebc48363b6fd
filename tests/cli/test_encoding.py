"""Text files are UTF-8, whatever the machine's code page."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from places import ROOT

FILES = [file for folder in ("tta_apm", "baselines", "benchmarks")
         for file in sorted((ROOT / folder).rglob("*.py"))]


def without_encoding(text: str) -> Iterator[int]:
    """Lines of calls that read or write text in the machine's code page."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords:
            continue
        if name in ("read_text", "write_text", "TextIOWrapper"):
            yield node.lineno
        elif name == "open" and owner not in ("os", "Image", "tarfile", "archive"):
            # open(file, mode), but path.open(mode)
            modes = node.args[1:2] if isinstance(node.func, ast.Name) else node.args[:1]
            mode = keywords.get("mode", modes[0] if modes else ast.Constant("r"))
            if not (isinstance(mode, ast.Constant) and "b" in mode.value):
                yield node.lineno
        elif name in ("run", "Popen", "check_output") and "text" in keywords:
            yield node.lineno


@pytest.mark.parametrize("text", [
    "open(name)", "open(name, 'w')", "Path(name).open()", "path.open('a')", "path.read_text()",
    "path.write_text(text)", "subprocess.run(words, text=True)", "open(name, mode='r')"])
def test_what_depends_on_the_code_page_is_seen(text):
    assert list(without_encoding(text)) == [1]


@pytest.mark.parametrize("text", [
    "open(name, 'rb')", "path.open('rb')", "path.read_text(encoding='utf-8')", "path.read_bytes()",
    "os.open(name, flags)", "open(name, 'w', encoding='utf-8')", "subprocess.run(words)"])
def test_what_does_not_depend_on_it_passes(text):
    assert not list(without_encoding(text))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_text_file_is_opened_as_utf_8(file):
    assert not list(without_encoding(file.read_text(encoding="utf-8")))
