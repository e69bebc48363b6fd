"""A cell is what makes its numbers: weights, images, code and settings by content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tta_apm import cli
from tta_apm.bench import file_hashes
from tta_apm.bench.plan import file_name

WEIGHTS = Path(cli.__file__).parent / "backbones" / "shipped"


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
