"""Files that are whole or as they were, and one sentence where they cannot be written."""

from __future__ import annotations

import errno
import os

import pytest

from tta_apm import cli
from tta_apm.errors import UserError
from tta_apm.report import imported
from tta_apm.report.logs import Log
from tta_apm.writing import TEMPORARY, aside, write_aside


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "new" / "file.txt"
    with aside(file) as temporary:
        temporary.write_text("first")
        assert not file.exists()
    assert file.read_text() == "first"
    with pytest.raises(KeyError), aside(file) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]
    assert file.read_text() == "first"


def test_what_a_kill_left_is_written_over(tmp_path):
    (tmp_path / f"file.txt{TEMPORARY}").write_text("the rest of a kill")
    write_aside(tmp_path / "file.txt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_bytes() == b"new"


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "file.txt"
    write_aside(file, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"cannot write {file}: No space left on device"):
        write_aside(file, b"new")
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
    with pytest.raises(UserError, match=r"cannot write .*occupied/imported/tent_tent_net-0123"):
        imported.save(log, tmp_path / "occupied")


def test_a_cell_that_cannot_be_written_is_told(results, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    other = ["--cfg", "cfgs/digits_c/all.yaml", "METHODS", "[source]", "CORRUPTIONS", "[contrast]",
             "NUM_IMAGES", "10", "OUTPUT_DIR", str(results)]
    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(other) == cli.BAD_INPUT
    assert "contrast-5-seed42.npz: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(other) == cli.OK
