"""What a sweep refuses, and what fails by name while the rest goes on."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from sweeps import cells
from tta_apm import cli
from tta_apm.registry import METHODS

pytestmark = pytest.mark.slow  # sweeps, processes or training


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write a text to a plugin's file, whose methods are forgotten after the test."""
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))

    def plugin(text: str) -> str:
        file = tmp_path / "plugin_methods.py"
        file.write_text(textwrap.dedent(text))
        return str(file)
    return plugin


def test_a_cell_that_cannot_be_redone_is_missing_not_the_old_one(sweep):
    """Its old record is of another config: the table must not show it among the new rows."""
    _, folder, _ = sweep("[source, tent]")
    code, _, printed = sweep("[source, tent]", "BATCH_SIZE", "1", flags=("--redo",))
    assert code == cli.FAILED_CELLS and "are missing in the table" in printed.err
    assert {Path(name).parent.name for name in cells(folder)} == {"source"}
    assert not list(folder.rglob("tent/*.json"))


@pytest.mark.parametrize("damage, message", [
    (lambda folder: truncate(next(folder.rglob("fog*.json"))), "is incomplete or not a record"),
    (lambda folder: truncate(next(folder.rglob("fog*.npz"))), "is corrupt or incomplete"),
    (lambda folder: (folder / "cells/notes.txt").write_text("mine"), "is not a file of a sweep"),
    (lambda folder: (folder / "cells/foreign.json").write_text("{}"), "or not a record of ours"),
])
def test_damaged_and_foreign_files_are_named(sweep, damage, message):
    _, folder, _ = sweep("source")
    damage(folder)
    before = cells(folder)
    code, _, printed = sweep("source")
    assert code == cli.BAD_INPUT and message in printed.err and str(folder) in printed.err
    assert cells(folder) == before
    assert cli.main(["table", str(folder)]) == cli.BAD_INPUT


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


BROKEN = """
    import torch
    from tta_apm.method import Method, register

    class Broken(Method):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
        def reset(self):
            pass

    @register("gives_nan")
    class GivesNan(Broken):
        def forward(self, images):
            logits = self.backbone(images)
            return torch.where(images.mean() > 0.3, logits / 0 * 0, logits)

    @register("wrong_shape")
    class WrongShape(Broken):
        def forward(self, images):
            return self.backbone(images)[:, :3]

    @register("raises")
    class Raises(Broken):
        def forward(self, images):
            raise KeyError("of a stranger")
"""


def test_a_broken_method_fails_by_name_and_the_sweep_goes_on(sweep, plugin):
    code, folder, printed = sweep("[wrong_shape, raises, gives_nan, source]",
                                  "PLUGINS", plugin(BROKEN))
    assert code == cli.FAILED_CELLS
    assert "[2, 3] instead of logits [2, 10]" in printed.out or "[16, 3]" in printed.out
    assert "KeyError: 'of a stranger' (plugin_methods.py:" in printed.out
    assert "not finite for" in printed.out
    assert "reset_each_domain-shuffled/wrong_shape/fog-5-seed42" in printed.err
    assert len(list(folder.rglob("source/*.json"))) == 2
    table = (folder / "table.md").read_text()
    assert "| source" in table and "| wrong_shape" not in table
    assert "METHODS without any cell yet: wrong_shape, raises, gives_nan" in table


@pytest.mark.parametrize("setting", ["reset_each_domain", "gradual"])
def test_where_all_cells_fail_it_says_so(sweep, plugin, setting):
    code, folder, printed = sweep("raises", "PLUGINS", plugin(BROKEN), "SETTING", setting,
                                  "SEVERITY", "[1,5]")
    assert code == cli.FAILED_CELLS
    assert "4 of 4 cells FAILED" in printed.err
    assert not (folder / "table.md").exists()


MOODY = """
    from tta_apm.method import Method, register

    @register("moody")
    class Moody(Method):
        built = 0

        def __init__(self, backbone, *, at_once=True, seed=0, source=None):
            super().__init__()
            type(self).built += 1
            if at_once or self.built > 1:
                raise TypeError("not today")
            self.backbone = backbone

        def forward(self, images):
            return self.backbone(images)

        def reset(self):
            pass
"""


def test_whatever_a_constructor_raises_is_one_sentence(sweep, plugin):
    said = "method 'moody' cannot be built: TypeError: not today (plugin_methods.py:"
    code, folder, printed = sweep("[source, moody]", "PLUGINS", plugin(MOODY))
    assert code == cli.FAILED_CELLS and len(cells(folder)) == 2  # it fails alone
    assert f"moody fails, the other rows go on: {said}" in printed.err
    code, folder, printed = sweep("[moody]", "PLUGINS", plugin(MOODY), folder="alone")
    assert code == cli.BAD_INPUT and not cells(folder) and said in printed.err


def test_a_method_that_can_be_built_once_only_fails_by_name(sweep, plugin):
    """As where memory runs short after an hour: the other rows go on."""
    code, folder, printed = sweep("['moody AT_ONCE false', source]", "PLUGINS", plugin(MOODY),
                                  "SEEDS", "[1,2]")
    assert code == cli.FAILED_CELLS
    assert "FAILED: method 'moody AT_ONCE false' cannot be built: TypeError: not" in printed.out
    assert "2 of 8 cells FAILED" in printed.err
    assert len(cells(folder)) == 6


def test_a_folder_without_frost_pictures_is_told_before_anything_runs(sweep, tmp_path):
    code, folder, printed = sweep("source", "CORRUPTIONS", "[fog,frost]", "FROST_DIR",
                                  str(tmp_path))
    assert code == cli.BAD_INPUT and f"FROST_DIR '{tmp_path}' lacks frost1.png" in printed.err
    assert "left empty, another source of frost" in printed.err
    assert not list(folder.rglob("*"))  # the folder itself may be there, which was locked
    code, _, _ = sweep("source", "CORRUPTIONS", "[frost]", "FROST_DIR", "")
    assert code == cli.OK
    code, _, _ = sweep("source", "CORRUPTIONS", "[fog]", "FROST_DIR", str(tmp_path))
    assert code == cli.OK


def test_a_method_that_cannot_be_built_is_told_at_once_and_fails_alone(sweep):
    code, folder, printed = sweep("[source, 'tent STEPS 0']")
    assert code == cli.FAILED_CELLS
    assert "tent STEPS 0 fails, the other rows go on: tent: steps 0 must" in printed.err
    assert len(cells(folder)) == 2
    code, folder, printed = sweep("'tent STEPS 0'", folder="alone")
    assert code == cli.BAD_INPUT and "steps 0" in printed.err
    assert not cells(folder)


def test_more_images_than_there_are(sweep):
    code, _, printed = sweep("source", "NUM_IMAGES", "100000")
    assert code == cli.BAD_INPUT and "digits_c has 597 images" in printed.err


def test_a_folder_that_cannot_be_written(tmp_path, sweep):
    (tmp_path / "occupied").write_text("a file")
    code, _, printed = sweep("source", folder="occupied/results")
    assert code == cli.BAD_INPUT and "cannot write to OUTPUT_DIR" in printed.err
