"""Files that are whole or as they were, and one sentence where they cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from tta_apm import atomic, cli
from tta_apm.atomic import (
    TEMPORARY, atomic_path, atomic_write, is_temporary, remove_leftovers, require_path)
from tta_apm.errors import UserError
from tta_apm.report import imported
from tta_apm.report.imported_log import Log


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "new" / "file.txt"
    with atomic_path(file) as temporary:
        temporary.write_text("first")
        assert not file.exists()
    assert file.read_text() == "first"
    with pytest.raises(KeyError), atomic_path(file) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]
    assert file.read_text() == "first"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    file = tmp_path / "file.txt"
    with atomic_path(file) as first, atomic_path(file) as second:
        assert first != second and is_temporary(first) and is_temporary(second)
        first.write_bytes(b"a longer text")
        second.write_bytes(b"text")
    assert file.read_bytes() == b"a longer text"  # the last to be renamed, and whole
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    other = tmp_path / "other.txt"
    other.write_text("somebody else's")
    (tmp_path / f"file.txt{TEMPORARY}").symlink_to(other)  # the name of version 0.1.0
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "0" * 2 * size)
    with atomic_path(tmp_path / "file.txt") as temporary:
        name = temporary.name
    (tmp_path / name).symlink_to(other)
    with pytest.raises(UserError, match="cannot write .*file.txt: File exists"):
        atomic_write(tmp_path / "file.txt", b"new")
    assert other.read_text() == "somebody else's"


# Names a temporary file, without writing it, and is killed there.
KILLED = """
import os, signal, sys
from pathlib import Path
from tta_apm.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_the_dead_left_is_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cells" / "file.txt"], check=False)
    left, = (tmp_path / "cells").iterdir()
    assert is_temporary(left)
    elsewhere = left.with_name(left.name.replace(atomic.machine(), "01234567"))
    forgotten = left.with_name(left.name.replace(atomic.machine(), "89abcdef"))
    for file in (elsewhere, forgotten, left.with_name("thesis.tmp")):
        file.write_text("half")
    os.utime(forgotten, (0, 0))
    with atomic_path(tmp_path / "cells" / "mine.txt") as mine:
        remove_leftovers(tmp_path)
        assert {path.name for path in left.parent.iterdir()} == {
            elsewhere.name, "thesis.tmp", mine.name}


def test_what_a_killed_table_left_goes_with_the_next_one(tmp_path):
    file = tmp_path / "table.md"
    subprocess.run([sys.executable, "-c", KILLED, file], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    atomic_write(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_a_long_name_can_be_written_aside(tmp_path):
    atomic_write(tmp_path / ("x" * 255), b"new")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


@pytest.mark.parametrize("name, reason", [
    ("x" * 256, "File name too long"), ("x/" * 3000, "File name too long"),
    ("a\0b", "a character that no file name can"), ("a\ud800b", "a character that no file name")])
def test_a_path_that_cannot_be_is_told(tmp_path, name, reason):
    with pytest.raises(UserError, match=f"OUTPUT_DIR .* cannot be used: .*{reason}"):
        require_path(tmp_path / name, "OUTPUT_DIR")
    require_path(tmp_path / "not" / "there", "OUTPUT_DIR")


def test_a_disk_that_runs_full_keeps_what_was_there(small_disk):
    file = small_disk / "file.txt"
    atomic_write(file, b"old")
    with pytest.raises(UserError, match=f"cannot write {file}: No space left on device"):
        atomic_write(file, bytes(1 << 20))
    assert [path.name for path in small_disk.iterdir()] == ["file.txt"]
    assert file.read_bytes() == b"old"


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "file.txt"
    atomic_write(file, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"cannot write {file}: No space left on device"):
        atomic_write(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert file.read_bytes() == b"old"


@pytest.fixture
def results(tmp_path, capsys):
    """A folder with a cell, and beside it a file where no folder can be made."""
    (tmp_path / "occupied").write_text("a file")
    assert cli.main(["--cfg", "cfgs/digits_c/all.yaml", "METHODS", "[source]", "CORRUPTIONS",
                     "[fog]", "NUM_IMAGES", "10", "OUTPUT_DIR", str(tmp_path / "results")]) == 0
    capsys.readouterr()
    return tmp_path / "results"


def test_a_table_that_cannot_be_written_is_told(results, capsys):
    (results / "table.md").unlink()
    (results / "table.md").mkdir()
    assert cli.main(["table", str(results)]) == cli.BAD_INPUT
    assert capsys.readouterr().err == (
        f"tta-apm: cannot write {results / 'table.md'}: Is a directory\n")


def test_an_export_that_cannot_be_written_is_told(results, capsys):
    file = results.parent / "occupied" / "table.csv"
    assert cli.main(["export", "csv", str(results), "--to", str(file)]) == cli.BAD_INPUT
    assert f"tta-apm: cannot write {file}: " in capsys.readouterr().err
    file = results.parent / "new" / "table.csv"
    assert cli.main(["export", "csv", str(results), "--to", str(file)]) == cli.OK
    assert file.read_text().startswith("method,")


def test_an_import_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "occupied").write_text("a file")
    log = Log("tent", "log.txt", "0123", "tent", {}, "net", "cifar10_c", "reset", 200, 1, [])
    with pytest.raises(UserError, match=r"cannot write .*occupied/imported/tent_tent_net-"):
        imported.save(log, tmp_path / "occupied")


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_goes_on_when_there_is_room(small_disk, capsys):
    words = ["--cfg", "cfgs/digits_c/all.yaml", "METHODS", "[source]", "NUM_IMAGES", "10",
             "OUTPUT_DIR", str(small_disk / "results")]
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(192 << 10))
    assert cli.main(words) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert ": No space left on device" in error and "Traceback" not in error
    written = {path: path.read_bytes() for path in small_disk.rglob("*-seed42.json")}
    assert 0 < len(written) < 15
    assert not [path for path in small_disk.rglob("*") if is_temporary(path)]
    ballast.unlink()
    assert cli.main(words) == cli.OK
    assert len(list(small_disk.rglob("*-seed42.json"))) == 15
    assert all(path.read_bytes() == content for path, content in written.items())
