"""Tables of a sweep that is not done: what is missing is shown as missing."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest

from frames import column, frame_of
from tta_apm import cli
from tta_apm.report import plots
from tta_apm.report.build import build_tables
from tta_apm.report.results import load_rows
from tta_apm.report.write import make_tables


def test_a_missing_cell_is_shown_and_never_averaged_over(write_cell, tmp_path):
    for row in ("source", "tent"):
        for corruption in ("fog", "snow"):
            if (row, corruption) != ("tent", "snow"):
                write_cell(row, corruption, 9)
    frame = frame_of(tmp_path).set_index("method")
    assert frame.loc["source", "mean"] == 10
    assert frame.loc["tent", "fog"] == 10
    assert frame.loc["tent", ["snow", "mean"]].isna().all()
    assert frame.loc["tent", "num_missing"] == 1
    text = (tmp_path / "table.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| 2 ")]
    assert [cell.strip() for cell in row.split("|")[4:7]] == ["–", "**10.0**", "–"]
    assert "Row 2: 1 of 2 cells missing" in text
    assert "& -- & \\textbf{10.0} & -- \\\\\n" in (tmp_path / "table.tex").read_text()


def test_what_the_sweep_wants_counts_as_missing_too(write_cell, write_config, tmp_path):
    write_cell("tent", "fog", 9)
    write_config(METHODS=["tent"], CORRUPTIONS=["fog", "snow"])
    frame = frame_of(tmp_path)
    assert list(frame.columns[:4]) == ["method", "snow", "fog", "mean"]
    assert frame.loc[0, ["snow", "mean"]].isna().all()


def test_a_cell_that_lacks_a_seed_is_missing(write_cell, tables):
    for corruption, seed in (("fog", 0), ("fog", 1), ("snow", 0)):
        write_cell("tent", corruption, 9, seed=seed)
    (table,) = tables()
    (line,) = table.lines
    assert line.figures["fog"].value == pytest.approx(0.1)
    assert np.isnan([line.figures["snow"].value, line.mean.value]).all()
    assert table.notes == ("Row 1: 1 of 4 cells missing; no average is taken over them.",)


@pytest.fixture
def half_done(write_cell, write_config, tmp_path):
    """A folder whose run wants two methods, two corruptions and two seeds, and was stopped."""
    write_config(METHODS=["tent", "norm", "apm"], CORRUPTIONS=["fog", "snow"], SEEDS=[0, 1])
    for seed in (0, 1):
        write_cell("tent", "fog", 9, seed=seed, teacher=8)
    write_cell("norm", "fog", 8)
    write_cell("norm", "snow", 8)
    return tmp_path


def test_a_half_done_sweep_shows_gaps_as_gaps(half_done):
    tables = make_tables(half_done)
    frame = pd.read_csv(io.StringIO(tables.files["table.csv"])).set_index("method")
    assert frame.loc["tent", "fog"] == 10
    assert frame.loc["tent", ["snow", "mean", "seconds_per_image"]].isna().all()
    assert frame.loc["norm", ["fog", "snow", "mean"]].isna().all()  # its second seed is missing
    for text in (tables.terminal, tables.files["table.md"]):
        folded = " ".join(text.split())
        assert "Row 1: 2 of 4 cells missing; no average is taken over them." in folded
        assert "Row 2: 2 of 4 cells missing; no average is taken over them. Seed 1 has no cell" in \
            folded
        assert "The run's METHODS without any cell yet: apm." in folded
    assert re.search(r"^mean +– +–$", tables.terminal, re.M)


def test_every_reader_has_the_gaps(half_done, capsys):
    rows = load_rows(half_done)
    assert rows.domains("digits_c") == {("fog", 5), ("snow", 5)}
    (table,) = build_tables(rows)
    assert np.isnan(column(table, "mean")).all()
    assert cli.main(["plot", str(half_done), "--kind", "methods"]) == cli.OK
    assert cli.main(["export", "csv", str(half_done)]) == cli.OK
    text = capsys.readouterr().out
    frame = pd.read_csv(io.StringIO(text[text.index("method,"):]))
    assert frame["mean"].isna().all()
    (made,) = plots.methods(table)
    assert [text.get_text() for text in made.axes[0].texts] == ["–", "10", "–", "–", "–", "–"]
    assert made.axes[0].texts[0].get_color() == "black"  # on white paper
    assert "2 seeds · incomplete\nimages: files" in made._suptitle.get_text()


def test_an_ablation_has_the_gaps(half_done, write_config):
    write_config(METHODS=["tent", "norm"], CORRUPTIONS=["fog", "snow"], SEEDS=[0, 1],
                 PAPER={"TABLE": "table_8", "ROWS": ["10 steps", ""]})
    text = make_tables(half_done).files["ablation.md"]
    assert [line.split("|")[2].strip() for line in text.splitlines()
            if line.startswith(("| tent", "| norm"))] == ["–", "–"]
    assert "Row 1: 2 of 4 cells missing" in text and "Images: files, 10 per domain" in text


def test_a_row_of_another_run_needs_its_own_seeds_and_the_domains_of_all(
        half_done, write_cell):
    for corruption in ("fog", "snow", "contrast"):
        write_cell("old", corruption, 5, seed=7)
    frame = pd.read_csv(io.StringIO(make_tables(half_done).files["table.csv"])).set_index("method")
    assert frame.loc["old", ["fog", "snow", "contrast", "mean"]].tolist() == [50] * 4
    assert frame.loc["tent", ["contrast", "mean"]].isna().all()


@pytest.mark.parametrize("content", [None, "", "]", "DATASET: digits_c", "SEEDS: [a]", "\xff"])
def test_where_nothing_tells_what_was_wanted_the_tables_say_so(
        half_done, content):
    (half_done / "config.yaml").unlink()
    if content is not None:
        (half_done / "config.yaml").write_text(content, encoding="latin-1")
    tables = make_tables(half_done)
    frame = pd.read_csv(io.StringIO(tables.files["table.csv"])).set_index("method")
    assert frame.loc["norm", "mean"] == 20 and frame.loc["tent", ["snow", "mean"]].isna().all()
    for text in (tables.terminal, tables.files["table.md"]):
        assert "is not found or not a config" in " ".join(text.split())


def test_a_config_of_another_data_set_is_named(half_done, write_cell):
    write_cell("tent", "fog", 5, dataset="cifar10_c")
    (other, own) = build_tables(load_rows(half_done))
    assert column(other, "mean").tolist() == [0.5] and np.isnan(column(own, "mean")).all()
    assert any("config.yaml is for digits_c" in note for note in other.notes)
    assert not any("config.yaml" in note for note in own.notes)
