"""Methods beside their teachers: differences, intervals, and the sentence on them."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.report.table import ClearColumns
from tta_apm.report.write import make_tables


def test_the_teacher_stands_beside_on_the_same_images(write_cell, tmp_path):
    for corruption, right, teacher in (("fog", 8, 5), ("snow", 6, 7)):
        for seed in (0, 1):
            write_cell("apm STEPS 20", corruption, right, teacher=teacher, seed=seed)
    write_cell("tent", "fog", 8)
    write_cell("tent", "snow", 8)
    tables = make_tables(tmp_path)
    tables.write(tmp_path)
    printed = tables.terminal
    frame = pd.read_csv(tmp_path / "table.csv").set_index("method")
    apm = frame.loc["apm STEPS 20"]
    assert apm[["mean", "teacher_mean", "delta_mean"]].tolist() == [30, 40, -10]
    assert apm[["delta_fog", "delta_snow"]].tolist() == [-30, 10]
    assert apm["delta_low_mean"] < -10 < apm["delta_high_mean"]
    assert apm["agreement"] == 80
    assert apm["cosine"] == pytest.approx(0.9)
    assert frame.loc["tent", ["teacher_mean", "delta_mean", "agreement", "cosine"]].isna().all()
    text = (tmp_path / "table.md").read_text()
    verdict = "Row 1, apm STEPS 20: 30.0 % error, its teacher 40.0 %, Δ -10.00 ["
    assert verdict in text and verdict in printed.replace("\n  ", " ")
    assert re.search(r"^\| fog +\| +-30\.00 \[-60\.32, \+6\.08\] \|$", text, re.M)


@pytest.mark.parametrize("metric", ["error", "accuracy"])
@pytest.mark.parametrize("right, verdict", [
    (90, "better than its teacher, the interval excludes 0"),
    (70, "worse than its teacher, the interval excludes 0"),
    (80, "the interval includes 0"),
])
def test_the_verdict_follows_the_interval_in_either_metric(
        write_cell, tmp_path, metric, right, verdict):
    write_cell("apm", "fog", right, teacher=80, num_images=100)
    make_tables(tmp_path, metric=metric).write(tmp_path)
    assert verdict in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("metric", ["error", "accuracy"])
def test_columns_whose_interval_excludes_zero_are_counted(
        write_cell, tables, tmp_path, metric):
    for corruption, right in (("fog", 90), ("snow", 70), ("frost", 60), ("contrast", 81)):
        write_cell("apm", corruption, right, teacher=80, num_images=100)
    write_cell("apm", "clean", 50, severity=0, teacher=80, num_images=100)
    (table,) = tables(metric=metric)
    assert table.clear_columns(table.lines[0]) == ClearColumns(better=1, worse=2, compared=4)
    assert ("excludes 0 in 3 of the 4 columns: better in 1, worse in 2."
            in make_tables(tmp_path, metric=metric).terminal.replace("\n  ", " "))


def test_one_column_is_not_counted(write_cell, tmp_path):
    write_cell("apm", "fog", 90, teacher=80, num_images=100)
    assert "columns" not in make_tables(tmp_path).terminal


def test_the_interval_samples_images_not_cells(write_cell, tables):
    for corruption in CORRUPTIONS:
        write_cell("apm", corruption, 8, teacher=6)
    (table,) = tables()
    figures = table.lines[0].figures
    assert figures["mean"].low == pytest.approx(figures["fog"].low)
    assert figures["mean"].high == pytest.approx(figures["fog"].high)
