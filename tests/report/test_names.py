"""Names of others: they stay on their line, and neither a terminal nor a spreadsheet obeys them."""

from __future__ import annotations

import csv
import io
import unicodedata

import pandas as pd
import pytest

from tta_apm import cli
from tta_apm.names import UNPRINTABLE, clean, clean_all
from tta_apm.registry import Registry
from tta_apm.report.formats.csv import csv_of
from tta_apm.report.plots import plot
from tta_apm.report.write import make_tables

# ESC sequences (clear the screen, title, hidden link), bidi overrides, zero width, separators.
HOSTILE = ["\x1b[2Jx", "\x1b]0;title\x07x", "\x1b]8;;http://e.x\x1b\\x", "\u202egpj.exe",
           "a\u200bb", "a\u2028b", "a\u2029b", "a\x85b", "a\rb", "a\n| 9 | forged | 0.0 |",
           "a\n\nb", "\x9b2J",
           "\ufeffcat", "\ud800", "\u2066a"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_what_is_obeyed_or_not_seen_is_replaced(name):
    cleaned = clean(name)
    assert len(cleaned) == len(name) and cleaned.splitlines() == [cleaned]
    assert not {unicodedata.category(character) for character in cleaned} & UNPRINTABLE
    cleaned.encode()
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize("name", ["apm STEPS 20", "Größe", "猫", "γ=0.5", "naïve–net", "é", "🐈"])
def test_letters_and_signs_stay(name):
    assert clean(name) == name


def test_all_texts_within_are_cleaned_and_nothing_else_is_changed():
    assert clean_all({"a\n": ["\x1b", 1, None, 0.5, True, {"b": "\u202e"}]}) == {
        "a ": ["?", 1, None, 0.5, True, {"b": "?"}]}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_record_cannot_break_a_table(write_cell, tmp_path, name):
    write_cell("tent", "fog", 9)
    whole = make_tables(tmp_path)
    write_cell(f"x {name} LR 1", "fog", 8, backbone=name, weights=name, images_from=name,
               device=name, survives=name, code=name, hyper_parameters={name: name})
    tables = make_tables(tmp_path)
    texts = (tables.terminal, *tables.files.values())
    assert not {unicodedata.category(character) for text in texts
                for character in text.replace("\n", "")} & UNPRINTABLE
    rows = [text.count("\n|") for text in (whole.files["table.md"], tables.files["table.md"])]
    assert rows[1] == rows[0] + 1
    assert tables.files["table.tex"].count(r" \\") == whole.files["table.tex"].count(r" \\") + 1
    assert len(list(csv.reader(io.StringIO(tables.files["table.csv"])))) == 3
    assert plot(tmp_path, kind="methods")


def test_no_cell_of_a_csv_is_a_formula(write_cell, tmp_path):
    for name in ("=1+1", "+x", "-x", "@SUM(A1)", "＝1"):
        write_cell(name, "fog", 9, backbone=name, weights=name)
    text = make_tables(tmp_path).files["table.csv"]
    cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "＝"))]
    assert {"'=1+1", "'+x", "'-x", "'@SUM(A1)", "'＝1"} <= set(cells)


def test_negative_numbers_stay_numbers():
    frame = pd.DataFrame({"=x": [-1.5, 2.0], "text": ["-1e-3", "-a"]})
    assert csv_of(frame) == "'=x,text\n-1.5,-1e-3\n2.0,'-a\n"


def test_a_dollar_is_no_formula_in_a_picture(write_cell, tmp_path):
    """matplotlib would read what stands between two of them, and fail on this one."""
    write_cell(r"a $\frac{$ b$$", "fog", 9)
    assert plot(tmp_path, kind="methods")


def test_a_method_cannot_be_registered_under_a_name_that_is_not_seen():
    with pytest.raises(ValueError, match="cannot be the name of a method"):
        Registry("none.such", "method").register("te\x1b[2Jnt")


def test_an_error_cannot_carry_a_sequence_to_the_terminal(tmp_path, capsys):
    assert cli.main(["table", str(tmp_path / "\x1b[2J")]) == cli.BAD_INPUT
    assert cli.main(["plot", str(tmp_path / "\x1b[2J")]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert "\x1b" not in said and said.count("?[2J") >= 2
