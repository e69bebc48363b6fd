"""The sentences that all parts share: unknown names, ranges, what cannot be written."""

from __future__ import annotations

import math

import pytest

from tta_apm.errors import UserError, at_least, between, choose, multiple_of, positive, writing


@pytest.mark.parametrize("check, text", [
    (lambda: choose("tent", "optimizer", "adem", ("adam", "sgd")),
     "tent: unknown optimizer 'adem': did you mean 'adam'?"),
    (lambda: choose("SETTING", "", "x", ("continual", "gradual")),
     "SETTING: unknown 'x': known: continual, gradual."),
    (lambda: choose("", "command", "tabel", ("table",)),
     "unknown command 'tabel': did you mean 'table'?"),
    (lambda: at_least(1, "apm", steps=2, patch=0), "apm: patch 0 must be at least 1"),
    (lambda: at_least(0, "", LR=math.nan), "LR nan must be at least 0 and finite"),
    (lambda: positive("", DIRICHLET=0), "DIRICHLET 0 must be positive"),
    (lambda: between(0, 1, "norm", alpha=1.5), "norm: alpha 1.5 must be between 0 and 1"),
    (lambda: multiple_of(4, "", CODE=6), "CODE 6 is not a multiple of 4"),
    (lambda: multiple_of(16, "apm", "patch", image_size=20),
     "apm: image_size 20 is not a multiple of patch 16"),
    (lambda: multiple_of(4, "apm", code=0), "apm: code 0 must be at least 1"),
])
def test_what_is_wrong_is_one_sentence(check, text):
    with pytest.raises(UserError) as caught:
        check()
    assert str(caught.value) == text


def test_what_is_right_passes():
    choose("", "command", "table", ("table",))
    at_least(0, "", STEPS=0)
    positive("", LR=1e-3)
    between(0, 1, "norm", alpha=0, beta=1)
    multiple_of(4, "", CODE=8)


def test_what_cannot_be_written_is_told_with_the_reason_and_what_to_do(tmp_path):
    with pytest.raises(UserError) as caught, writing(f"to {tmp_path}", "choose another folder"):
        (tmp_path / "file").mkdir()
        (tmp_path / "file").write_text("")
    assert str(caught.value) == f"cannot write to {tmp_path}: Is a directory; choose another folder"


def test_a_sentence_made_for_the_user_passes_where_files_are_read_and_written():
    assert not issubclass(UserError, (ValueError, OSError))
    with pytest.raises(UserError, match="^made before$"), writing("file"):
        raise UserError("made before")
