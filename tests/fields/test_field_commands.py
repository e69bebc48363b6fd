"""The commands that show a field: islands, reconstruct, interpolate, query."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from small_student import CHINA, FEATURE_DIM, FLOWER
from tta_apm.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("options, pictures", [
    (("islands", CHINA, FLOWER, "--embedding", "pca"), ["islands.png"]),
    (("islands", CHINA, "--over", "--dimensions", "1"), ["islands.png"]),
    (("reconstruct", CHINA), ["reconstruction.png"]),
    (("interpolate", CHINA, FLOWER, "-n", "3"), ["interpolation.png", "interpolation.gif"]),
])
def test_commands_draw(file, options, pictures, tmp_path, capsys):
    out = tmp_path / pictures[0]
    assert main([*options, "--student", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for name in pictures:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 1
            assert getattr(picture, "n_frames", 1) == (6 if name.endswith("gif") else 1)
        assert name in said


@pytest.mark.slow
def test_islands_on_the_way_of_test_time_training(tmp_path):
    config = tmp_path / "figure3.yaml"
    config.write_text("TEACHER: clip/digits_clip\nWEIGHTS: digits_clip.safetensors\n"
                      "IMAGE_SIZE: 24\nPATCH: 4\nCODE: 8\nHIDDEN: [16]\n"
                      "CLS_WEIGHT: 1\nGRID_WEIGHT: 0\nRGB_WEIGHT: 0\nLR: 1e-3\nDEVICE: cpu\n")
    out = tmp_path / "strip.png"
    assert main(["islands", CHINA, "--cfg", str(config), "--steps", "0", "2", "--embedding", "pca",
                 "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > picture.height > 200


def test_query_prints_and_writes_what_it_was_asked_for(file, tmp_path, capsys):
    out = tmp_path / "columns.csv"
    assert main(["query", CHINA, "--student", str(file), "--at", "5,0", "2,3",
                 "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and "colour #" in said[0] and said[2].startswith("mean of 2")
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert [row[:2] for row in rows] == [["5", "0"], ["2", "3"]]
    assert all(len(row) == 2 + 3 + FEATURE_DIM for row in rows)


@pytest.mark.parametrize("words, message", [
    (["reconstruct", "no.jpg"], "image not found: 'no.jpg'"),
    (["reconstruct", "sklearn/chna.jpg"], "did you mean 'sklearn/china.jpg'?"),
    (["reconstruct", "{text}"], "cannot read the image"),
    (["query", CHINA, "--at", "6,0"], "no column at 6,0: the grid is 6×6"),
    (["interpolate", CHINA, FLOWER, "-n", "0"], "give at least one"),
    (["islands", CHINA, "--error-map"], "names no teacher"),
    (["islands", CHINA, "--out", "{folder}/islands.jpg"], "written as .png or .svg"),
])
def test_bad_input_is_one_sentence(file, tmp_path, capsys, words, message):
    (tmp_path / "text.jpg").write_text("no picture")
    words = [word.format(text=tmp_path / "text.jpg", folder=tmp_path) for word in words]
    assert main([*words, "--student", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_wrong_config_is_told_before_torch_is_imported():
    """In a fraction of a second; torch takes several."""
    subprocess.run([sys.executable, "-c", "import sys; from tta_apm.cli import main; "
                    "assert main(['islands', 'x.jpg', '--cfg', 'cfgs/pretrain/quick.yaml', 'LR', "
                    "'0']) == 2; assert not {'torch', 'sklearn'} & set(sys.modules)"], check=True)
