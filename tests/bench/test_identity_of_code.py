"""The part of a cell's identity that is code: by meaning, along imports."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tta_apm import cli
from tta_apm.bench import code
from tta_apm.bench.code import closure_files, hash_code


@pytest.mark.parametrize("name", [
    "data/prepare/zenodo", "data/official", "data/hub", "backbones/build",
    "backbones/weights/downloads",
    "fields/pretrain", "training/backbones", "report/table", "cli", "config/__init__",
    "config/rows", "bench/records"])
def test_code_without_a_say_in_numbers_is_not_in_the_closure(name):
    file = Path(cli.__file__).parent / f"{name}.py"
    assert file.is_file()
    for root in ("tta_apm_baselines.tent", "tta_apm.apm.method", "tta_apm.backbones.clip",
                 "tta_apm.data.shards", "tta_apm.bench.evaluate", "tta_apm.data.cifar"):
        assert file not in closure_files(root), root


@pytest.mark.parametrize("root, name, within", [
    ("tta_apm.apm.method", "apm/student", True), ("tta_apm_baselines.tent", "apm/student", False),
    ("tta_apm_baselines.tent", "toolbox/entropy", True),
    ("tta_apm.data.cifar", "data/corruptions/functions", True),
    ("tta_apm.data.digits", "data/corruptions/frost", True),
    ("tta_apm.backbones.mae", "backbones/weights/files", True),
    ("tta_apm.backbones.clip", "backbones/small_resnets", True)])
def test_the_closure_follows_imports(root, name, within):
    file = Path(cli.__file__).parent / f"{name}.py"
    assert (file in closure_files(root)) == within


@pytest.fixture
def plugin(tmp_path):
    """A plugin with a helper beside it; gives its file and a hash of its code."""
    (tmp_path / "helper.py").write_text('"""Help."""\n\n\ndef gain():\n    return 2.0\n')
    file = tmp_path / "plugin.py"
    file.write_text("from helper import gain\n\nVALUE = gain()\n")

    def of():
        code.find_module.cache_clear()
        code._resolve.cache_clear()
        code._home.cache_clear()
        return hash_code([file])
    return file, of


@pytest.mark.parametrize("change, same", [
    (lambda text: text.replace("Help.", "Another docstring."), True),
    (lambda text: text + "# a comment\n", True),
    (lambda text: text.replace("return 2.0", "return  2.0"), True),
    (lambda text: text.replace("2.0", "3.0"), False)])
def test_a_helper_of_a_plugin_counts_by_its_meaning(plugin, change, same):
    file, of = plugin
    before = of()
    helper = file.with_name("helper.py")
    state = helper.stat()
    helper.write_text(change(helper.read_text()))
    os.utime(helper, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert (of() == before) == same


def test_a_file_that_moves_changes_nothing(plugin):
    file, of = plugin
    before = of()
    package = file.parent / "inside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    file.with_name("helper.py").rename(package / "helper.py")
    file.write_text("from inside.helper import gain\n\nVALUE = gain()\n")
    assert of() == before


def test_another_function_of_the_same_name_is_other_code(plugin):
    file, of = plugin
    file.with_name("second.py").write_text("def gain():\n    return 9.0\n")
    file.write_text("import second\nfrom helper import gain\n\nVALUE = gain()\n")
    before = of()
    state = file.stat()
    file.write_text("import helper\nfrom second import gain\n\nVALUE = gain()\n")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert of() != before


def test_another_library_is_other_code(tmp_path):
    files = tmp_path / "a.py", tmp_path / "b.py"
    for file, library in zip(files, ("numpy", "scipy")):
        file.write_text(f"import {library} as lib\n\nVALUE = lib.pi\n")
    assert hash_code([files[0]]) != hash_code([files[1]])


def test_a_clone_is_its_commit_and_its_sources(run, tmp_path):
    from tta_apm.bench.identity import _hash_folder
    clone = tmp_path / "clone"
    (clone / "methods").mkdir(parents=True)
    source = clone / "methods" / "cotta.py"
    source.write_text("RATE = 1\n")
    plain = _hash_folder(clone)
    commit(clone, ".")
    committed = _hash_folder(clone)
    assert committed.endswith(f" {plain}")
    source.write_text("RATE = 2\n")
    assert _hash_folder(clone) not in (committed, plain)


def test_an_archive_inside_a_checkout_is_not_of_its_commit(tmp_path):
    from tta_apm.bench.identity import _hash_folder
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/cotta.py").write_text("RATE = 1\n")
    plain = _hash_folder(tmp_path / "archive")
    (tmp_path / "mine.py").touch()
    commit(tmp_path, "mine.py")
    assert _hash_folder(tmp_path / "archive") == plain


def commit(folder: Path, *files: str) -> None:
    """Make a folder a clone with a commit of some of its files."""
    for words in (["init", "-q", "."], ["add", *files],
                  ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def test_a_clone_is_known_by_a_mere_name_too(tmp_path, monkeypatch):
    """As docs/hosts/online-tta.md has it; a word of another key stays a word."""
    from tta_apm.bench.identity import _hashes
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone/cotta.py").touch()
    by_name, = _hashes("ONLINE_TTA.REPO", "clone")
    assert [by_name] == list(_hashes("ONLINE_TTA.REPO", str(tmp_path / "clone")))
    assert not list(_hashes("TENT.OPTIMIZER", "clone"))
