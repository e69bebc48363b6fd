"""A cell is what makes its numbers: weights, images, code and settings by content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tta_apm import cli
from tta_apm.bench import code, file_hashes
from tta_apm.bench.code import closure_files, hash_code
from tta_apm.bench.plan import file_name
from tta_apm.bench.records import find_records, load_record

WEIGHTS = Path(cli.__file__).parent / "backbones" / "shipped"


@pytest.fixture
def run(tmp_path, capsys):
    """Run a sweep of digits; gives its exit code and what it printed."""
    def call(*words, folder=tmp_path / "results", cfg="cfgs/digits_c/source.yaml"):
        flags = [word for word in words if word.startswith("--")]
        keys = [word for word in words if not word.startswith("--")]
        pairs = {"CORRUPTIONS": "[contrast]", "NUM_IMAGES": "6", "BATCH_SIZE": "6",
                 "OUTPUT_DIR": str(folder)} | dict(zip(keys[::2], keys[1::2]))
        exit_code = cli.main(["--cfg", cfg, *flags, *(word for pair in pairs.items()
                                                      for word in pair)])
        return exit_code, capsys.readouterr()
    return call


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of photographs, a few pixels each."""
    def make(name, seed=0, classes=("cat", "dog")):
        generator = np.random.default_rng(seed)
        for of_class in classes:
            folder = tmp_path / name / of_class
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        return tmp_path / name
    return make


def folder_words(data):
    return ["DATASET", "folder", "DATA_DIR", str(data), "SEVERITY", "[0]", "TEMPLATES", "single",
            "NUM_IMAGES", "-1"]


def the_record(folder: Path):
    file, = find_records(folder / "cells")
    return load_record(file)


# Weights

@pytest.mark.slow
def test_other_weights_under_the_same_path_are_not_the_same_cell(run, tmp_path):
    weights = tmp_path / "w.safetensors"
    shutil.copy(WEIGHTS / "digits_resnet.safetensors", weights)
    words = ["CLASSIFIER.WEIGHTS", str(weights)]
    assert run(*words)[0] == cli.OK
    assert "to run" not in run(*words)[1].out
    content = bytearray(weights.read_bytes())
    content[-400:] = bytes(400)
    weights.write_bytes(content)
    exit_code, printed = run(*words)
    assert exit_code == cli.BAD_INPUT
    assert "CLASSIFIER.WEIGHTS has another content" in printed.err and "--redo" in printed.err
    exit_code, printed = run(*words, "--redo")
    assert exit_code == cli.OK and "1 of 1 cells to run" in printed.out


@pytest.mark.slow
def test_weights_that_moved_are_the_same_cell(run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(WEIGHTS / "digits_resnet.safetensors", tmp_path / name / f"{name}.safetensors")
    assert run("CLASSIFIER.WEIGHTS", str(tmp_path / "a/a.safetensors"))[0] == cli.OK
    _, printed = run("CLASSIFIER.WEIGHTS", str(tmp_path / "b/b.safetensors"))
    assert "to run" not in printed.out


@pytest.mark.slow
def test_weights_that_are_gone_are_named(run, tmp_path):
    weights = tmp_path / "w.safetensors"
    shutil.copy(WEIGHTS / "digits_resnet.safetensors", weights)
    assert run("CLASSIFIER.WEIGHTS", str(weights))[0] == cli.OK
    weights.unlink()
    _, printed = run("CLASSIFIER.WEIGHTS", str(weights))
    assert f"{weights} is not a file that is found" in printed.err


@pytest.mark.slow
def test_a_context_is_a_file_that_a_row_reads(run, tmp_path):
    context = tmp_path / "c.safetensors"
    shutil.copy(WEIGHTS / "digits_coop.safetensors", context)
    words = ["METHODS", "[coop]", "COOP.WEIGHTS", str(context)]
    assert run(*words, cfg="cfgs/digits_c/coop.yaml")[0] == cli.OK
    content = bytearray(context.read_bytes())
    content[-8:] = bytes(8)
    context.write_bytes(content)
    exit_code, printed = run(*words, cfg="cfgs/digits_c/coop.yaml")
    assert exit_code == cli.BAD_INPUT and "COOP.WEIGHTS has another content" in printed.err


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "w"
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    first = file_hashes.hash_file(file)
    monkeypatch.setattr(file_hashes.hashlib, "sha256",
                        _only_for_keys(file_hashes.hashlib.sha256, b"one"))
    assert file_hashes.hash_file(file) == first
    monkeypatch.undo()
    file.write_bytes(b"two")
    assert file_hashes.hash_file(file) != first


def _only_for_keys(sha256, content):
    """sha256 that must not be fed `content`."""
    class Digest:
        def __init__(self, data=b""):
            self.inner = sha256(data)
            self.hexdigest = self.inner.hexdigest

        def update(self, data):
            assert data != content, "the file was read again"
            self.inner.update(data)
    return Digest


def test_a_file_written_a_moment_ago_is_read_again(tmp_path):
    file = tmp_path / "w"
    file.write_bytes(b"one")
    state = file.stat()
    first = file_hashes.hash_file(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # in the same tick
    assert file_hashes.hash_file(file) != first


def test_a_damaged_note_and_no_home_cost_reading_again(tmp_path, monkeypatch):
    file = tmp_path / "w"
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    first = file_hashes.hash_file(file)
    for note in (Path(os.environ["XDG_CACHE_HOME"]) / "tta_apm" / "hashes").iterdir():
        note.write_bytes(b"\xff\xfe nonsense")
    assert file_hashes.hash_file(file) == first
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", _no_home)
    assert file_hashes.hash_file(file) == first


def _no_home():
    raise RuntimeError("Could not determine home directory.")


# Images

@pytest.mark.slow
def test_other_images_under_the_same_name_are_not_the_same_cell(run, pictures):
    cats, fruit = pictures("pets"), pictures("fruit", 1, ("apple", "pear", "plum"))
    words = ["METHODS", "[clip_zero_shot]"]
    assert run(*folder_words(cats), *words)[0] == cli.OK
    exit_code, printed = run(*folder_words(fruit), *words)
    assert exit_code == cli.BAD_INPUT and "class names" in printed.err
    assert run(*folder_words(cats), *words)[0] == cli.OK


@pytest.mark.slow
def test_images_replaced_in_place_are_seen(run, pictures):
    data = pictures("pets")
    words = [*folder_words(data), "METHODS", "[clip_zero_shot]"]
    assert run(*words)[0] == cli.OK
    first, second = data / "cat/0.png", data / "cat/1.png"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(bytes(content))
    assert "to run" not in run(*words)[1].out  # the same images, in another order
    Image.new("RGB", (32, 32)).save(first)
    exit_code, printed = run(*words)
    assert exit_code == cli.BAD_INPUT and "(other images)" in printed.err


@pytest.mark.slow
def test_a_class_that_is_called_otherwise_is_seen(run, pictures):
    data = pictures("pets")
    words = [*folder_words(data), "METHODS", "[clip_zero_shot]"]
    assert run(*words)[0] == cli.OK
    (data / "dog").rename(data / "hound")
    exit_code, printed = run(*words)
    assert exit_code == cli.BAD_INPUT and "class names" in printed.err


@pytest.mark.slow
def test_a_copy_of_the_images_is_the_same_data(run, pictures, tmp_path):
    data = pictures("pets")
    words = ["METHODS", "[clip_zero_shot]"]
    assert run(*folder_words(data), *words)[0] == cli.OK
    other = tmp_path / "elsewhere" / "pets"
    shutil.copytree(data, other)
    for file in other.rglob("*.png"):
        os.utime(file, (5, 5))
    exit_code, printed = run(*folder_words(other), *words)
    assert exit_code == cli.OK and "to run" not in printed.out


@pytest.mark.slow
def test_what_is_recorded_is_shown_where_the_images_are_not(run, pictures, tmp_path):
    data = pictures("pets")
    words = [*folder_words(data), "METHODS", "[clip_zero_shot]"]
    assert run(*words)[0] == cli.OK
    shutil.rmtree(data)
    exit_code, printed = run(*words)
    assert exit_code == cli.OK and "The images were not checked" in printed.err


# Code

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


# Files and names

def test_other_rows_have_other_files_even_where_case_does_not_count():
    texts = ["tent", "tent LR 0.1", "coop WEIGHTS runs/a/c.safetensors",
             "coop WEIGHTS runs/a_c.safetensors", "coop WEIGHTS A.pth", "coop WEIGHTS a.pth",
             "my/row", "my_row", "Tent", "x KEY " + "a" * 300, "x KEY " + "a" * 301,
             "tent LR -1", "tent LR 1", "tent LR 1e-3", "tent LR 1e+3"]
    names = {file_name(text).casefold() for text in texts}
    assert len(names) == len(texts)
    assert all(len(name) < 200 for name in names)


def test_names_of_plain_rows_are_those_of_version_0_1_0():
    assert file_name("tpt WEIGHTS digits_coop.safetensors") == "tpt_WEIGHTS_digits_coop.safetensors"
    assert file_name("dirichlet 0.1") == "dirichlet_0.1"


@pytest.mark.slow
def test_a_rows_folder_may_be_a_link(run, tmp_path):
    assert run()[0] == cli.OK
    row = tmp_path / "results/cells/reset_each_domain-shuffled/source"
    row.rename(tmp_path / "moved")
    row.symlink_to(tmp_path / "moved")
    exit_code, printed = run()
    assert exit_code == cli.OK and "to run" not in printed.out and "source" in printed.out


@pytest.mark.slow
def test_links_to_nothing_and_in_circles_are_named(run, tmp_path):
    assert run()[0] == cli.OK
    rows = tmp_path / "results/cells/reset_each_domain-shuffled"
    (rows / "circle").symlink_to(rows)
    assert "a link to a folder that contains it" in run()[1].err
    (rows / "circle").unlink()
    (rows / "nothing").symlink_to(tmp_path / "nowhere")
    assert "a broken link" in run()[1].err


@pytest.mark.slow
def test_what_systems_leave_in_folders_is_passed_over(run, tmp_path):
    assert run()[0] == cli.OK
    for name in (".DS_Store", ".nfs0001", "Thumbs.db", "desktop.ini"):
        (tmp_path / "results/cells" / name).write_bytes(b"x")
    assert run()[0] == cli.OK


# Older records, damaged ones

def as_of_0_1_0(folder: Path) -> None:
    for file in (folder / "cells").rglob("*.json"):
        content = json.loads(file.read_text())
        del content["identity"]
        file.write_text(json.dumps(content))


@pytest.mark.slow
def test_records_of_0_1_0_are_shown_marked_and_redone(run, tmp_path, capsys):
    assert run()[0] == cli.OK
    folder = tmp_path / "results"
    as_of_0_1_0(folder)
    assert cli.main(["table", str(folder)]) == cli.OK
    assert "recorded by version 0.1.0" in capsys.readouterr().out
    exit_code, printed = run()
    assert exit_code == cli.BAD_INPUT and "by version 0.1.0" in printed.err
    assert run("--redo")[0] == cli.OK
    assert the_record(folder).identity["settings"]["method"] == "source"


@pytest.mark.slow
def test_config_yaml_stays_as_it_was_where_a_run_is_refused(run, tmp_path):
    assert run()[0] == cli.OK
    before = (tmp_path / "results/config.yaml").read_text()
    assert run("BATCH_SIZE", "3")[0] == cli.BAD_INPUT
    assert (tmp_path / "results/config.yaml").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("field, value", [
    ("row", 5), ("severity", "5"), ("severity", 9), ("num_images", -1), ("num_images", 10**400),
    ("seconds", None), ("seconds", -1.0), ("seconds", float("nan")), ("seed", 10**400),
    ("peak_memory_mb", "much"), ("gflops_per_image", []), ("hyper_parameters", []),
    ("versions", "1"), ("num_correct", 99), ("batch_size", True), ("identity", "x")])
def test_a_record_of_wrong_types_or_ranges_is_named_with_its_field(run, tmp_path, field, value):
    assert run()[0] == cli.OK
    file, = find_records(tmp_path / "results/cells")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, field: value}))
    exit_code, printed = run()
    assert exit_code == cli.BAD_INPUT and str(file) in printed.err and field in printed.err
    assert run("--redo")[0] == cli.OK


@pytest.mark.slow
@pytest.mark.parametrize("name, column", [
    ("index", np.array([0.5] * 6)), ("index", np.array([10**12] + [0] * 5)),
    ("index", np.array([-1] * 6)), ("label", np.zeros((6, 1), np.int64)),
    ("prediction", np.zeros(5, np.int64)), ("prediction", np.array(["a"] * 6)),
    ("confidence", np.full(6, 9e9, np.float32)), ("confidence", np.full(6, np.nan, np.float32))])
def test_predictions_that_no_run_leaves_are_named(run, tmp_path, name, column):
    import io

    from tta_apm.bench.records import hash_bytes
    assert run()[0] == cli.OK
    file, = find_records(tmp_path / "results/cells")
    arrays = dict(np.load(file.with_suffix(".npz")))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**arrays, name: column})
    file.with_suffix(".npz").write_bytes(buffer.getvalue())
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "predictions_hash": hash_bytes(buffer.getvalue())}))
    exit_code, printed = run()
    assert exit_code == cli.BAD_INPUT and str(file) in printed.err.replace(".npz", ".json")
    assert name in printed.err


@pytest.mark.slow
def test_a_redo_that_was_killed_leaves_a_folder_that_goes_on(run, tmp_path):
    assert run()[0] == cli.OK
    file, = find_records(tmp_path / "results/cells")
    predictions = file.with_suffix(".npz").read_bytes()
    file.with_suffix(".npz").write_bytes(predictions + b"of other predictions")
    assert run("--redo")[0] == cli.OK  # as version 0.1.0 left it
    file.unlink()  # as this one leaves it
    assert run()[0] == cli.OK


@pytest.mark.slow
def test_damaged_records_are_counted_in_one_go(run, tmp_path):
    assert run("SEEDS", "[1,2,3]")[0] == cli.OK
    for file in find_records(tmp_path / "results/cells"):
        file.write_text("{}")
    exit_code, printed = run("SEEDS", "[1,2,3]")
    assert exit_code == cli.BAD_INPUT and "and 2 more like it" in printed.err
