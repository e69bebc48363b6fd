"""Tables: every average from the cells, nothing averaged over what is missing, teachers beside."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from frames import column, frame_of
from tta_apm import cli
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.errors import UserError
from tta_apm.report.formats import markdown
from tta_apm.report.write import make_tables


def test_averages_are_recomputed_from_the_cells(write_cell, tmp_path):
    for corruption, right in (("fog", 9), ("snow", 7), ("contrast", 2)):
        write_cell("tent", corruption, right)
    frame = frame_of(tmp_path)
    assert frame.loc[0, ["snow", "fog", "contrast"]].tolist() == [30, 10, 80]
    assert frame.loc[0, "mean"] == 40
    assert frame.loc[0, "seconds_per_image"] == 0.2


def test_seconds_beside_other_processes_count_only_where_there_are_no_others(write_cell, tmp_path,
                                                                             tables):
    for row, crowded in (("tent", (False, True)), ("norm", (True, True))):
        for corruption, is_crowded, seconds in zip(("fog", "snow"), crowded, (2.0, 6.0)):
            write_cell(row, corruption, 9, crowded=is_crowded, seconds=seconds)  # of ten images
    frame = frame_of(tmp_path).set_index("method")
    assert frame.loc["tent", "seconds_per_image"] == pytest.approx(0.2)
    assert frame.loc["norm", "seconds_per_image"] == pytest.approx(0.4)
    assert "~400" in markdown.text(tables()) and "~200" not in markdown.text(tables())


def test_accuracy_mirrors_error(write_cell, tables):
    for corruption, right, teacher in (("fog", 9, 5), ("snow", 7, 8)):
        for seed in (0, 1):
            write_cell("apm", corruption, right - seed, teacher=teacher, seed=seed)
            write_cell("tent", corruption, right, seed=seed)
    (error,), (accuracy,) = tables(metric="error"), tables(metric="accuracy")
    for name, field in (("fog", "value"), ("snow", "value"), ("mean", "value"),
                        ("mean", "teacher")):
        np.testing.assert_allclose(column(accuracy, name, field), 1 - column(error, name, field))
    for field, mirrored in (("delta", "delta"), ("low", "high")):
        np.testing.assert_allclose(column(accuracy, "mean", field),
                                   -column(error, "mean", mirrored))
    np.testing.assert_allclose(column(accuracy, "mean", "std"), column(error, "mean", "std"))
    assert accuracy.best == error.best
    assert "higher is better" in markdown.text([accuracy])
    assert "lower is better" in markdown.text([error])


def test_an_unknown_metric_is_a_user_error(write_cell, tables):
    write_cell("tent", "fog", 9)
    with pytest.raises(UserError, match="'error'"):
        tables(metric="eror")


def test_seeds_give_mean_and_std(write_cell, tmp_path):
    rights = {"fog": (9, 7, 5), "snow": (6, 6, 3)}
    for corruption, of_seeds in rights.items():
        for seed, right in enumerate(of_seeds):
            write_cell("tent", corruption, right, seed=seed)
    frame = frame_of(tmp_path)
    assert frame.loc[0, ["fog", "snow", "mean"]].tolist() == [30, 50, 40]
    assert frame.loc[0, "std_fog"] == pytest.approx(20)
    assert frame.loc[0, "std_mean"] == pytest.approx(np.std([25, 35, 60], ddof=1), abs=1e-4)
    assert frame.loc[0, "seeds"] == "0 1 2"
    assert "30.0 ± 20.0" in (tmp_path / "table.md").read_text()
    assert r"30.0 $\pm$ 20.0" in (tmp_path / "table.tex").read_text()


def test_one_seed_has_no_std(write_cell, tmp_path):
    write_cell("tent", "fog", 9)
    assert frame_of(tmp_path)["std_mean"].isna().all()
    assert "±" not in (tmp_path / "table.md").read_text()


def test_the_best_is_bold_and_so_are_ties(write_cell, tmp_path):
    for row, fog, snow in (("norm", 9, 5), ("source", 9, 4), ("tent", 8, 9)):
        write_cell(row, "fog", fog)
        write_cell(row, "snow", snow)
    make_tables(tmp_path).write(tmp_path)
    bold = [re.findall(r"\*\*([\d.]+)\*\*", line)
            for line in (tmp_path / "table.md").read_text().splitlines()
            if re.match(r"\| \d", line)]
    assert bold == [["10.0"], ["10.0"], ["10.0", "15.0"]]
    make_tables(tmp_path, metric="accuracy").write(tmp_path)
    assert (tmp_path / "table.tex").read_text().count(r"\textbf{90.0}") == 3


def test_rows_on_different_images_are_not_compared(write_cell, tables):
    write_cell("norm", "fog", 9)
    write_cell("source", "fog", 8)
    write_cell("tent", "fog", 10, images_hash="other")
    (table,) = tables()
    assert table.best == {(1, "fog"), (1, "mean")}
    assert any("not on the same images: 1, 2 | 3" in note for note in table.notes)


def test_cells_of_different_code_or_devices_are_flagged(write_cell, tables):
    write_cell("tent", "fog", 9)
    write_cell("tent", "snow", 9, code="new", device="gpu")
    (table,) = tables()
    assert "different code (c0de, new)" in table.notes[0]
    assert "different devices (cpu, gpu)" in table.notes[1]


@pytest.mark.parametrize("field, values", [
    ("batch_size", (1, 200)), ("setting", ("continual", "reset_each_domain")),
    ("hyper_parameters", ({"lr": 0.1}, {"lr": 0.2})), ("weights", ("a.pt", "b.pt")),
    ("backbone", ("vit", "resnet")), ("templates", ("single", "ensemble")), ("num_images", (10, 9)),
])
def test_two_protocols_of_one_method_are_two_rows_that_a_reader_can_tell_apart(
        write_cell, tmp_path, field, values):
    for value in values:
        write_cell("tent", "fog", 9, **{field: value})
    assert len(frame_of(tmp_path)) == 2
    rows = re.findall(r"^\| \d(.*)$", (tmp_path / "table.md").read_text(), re.M)
    assert rows[0] != rows[1]


def test_the_same_cell_in_two_files_is_a_user_error(write_cell, tmp_path):
    write_cell("tent", "fog", 9)
    write_cell("tent", "fog", 8, fingerprint="another")
    with pytest.raises(UserError, match="hold the same cell"):
        make_tables(tmp_path).write(tmp_path)


def test_severities_have_their_own_tables_and_a_mean(write_cell, tmp_path):
    for severity, fog, snow in ((1, 9, 8), (3, 7, 6)):
        write_cell("tent", "fog", fog, severity=severity)
        write_cell("tent", "snow", snow, severity=severity)
        write_cell("norm", "fog", fog, severity=severity)
    write_cell("norm", "snow", 8, severity=1)
    frame = frame_of(tmp_path).set_index(["method", "severity"])
    assert frame.loc[("tent", "1"), ["fog", "snow", "mean"]].tolist() == [10, 20, 15]
    assert frame.loc[("tent", "mean of 1 3"), ["fog", "snow", "mean"]].tolist() == [20, 30, 25]
    assert frame.loc[("norm", "1"), "mean"] == 15
    assert frame.loc[("norm", "mean of 1 3"), "fog"] == 20
    assert frame.loc[("norm", "mean of 1 3"), ["snow", "mean"]].isna().all()
    titles = re.findall("^## (.*)$", (tmp_path / "table.md").read_text(), re.M)
    assert titles == ["digits_c, severity 1", "digits_c, severity 3",
                      "digits_c, mean over severities 1 3"]


def test_clean_images_stand_first_and_outside_the_mean(write_cell, tmp_path):
    write_cell("tent", "clean", 10, severity=0)
    write_cell("tent", "fog", 8)
    frame = frame_of(tmp_path)
    assert list(frame.columns[:4]) == ["method", "fog", "mean", "clean"]
    assert frame.loc[0, ["fog", "mean", "clean"]].tolist() == [20, 20, 0]
    assert re.search(r"backbone \| +clean \| +fog \| +mean", (tmp_path / "table.md").read_text())


def test_a_clean_data_set_alone(write_cell, tmp_path):
    write_cell("apm", "clean", 9, severity=0, teacher=8)
    tables = make_tables(tmp_path)
    tables.write(tmp_path)
    assert "apm" in tables.terminal
    frame = pd.read_csv(tmp_path / "table.csv")
    assert frame.loc[0, ["clean", "mean", "delta_mean"]].tolist() == [10, 10, -10]


def test_data_sets_do_not_lack_one_anothers_columns(write_cell, tmp_path):
    write_cell("tent", "fog", 9)
    write_cell("tent", "snow", 7, dataset="cifar10_c")
    assert frame_of(tmp_path)["mean"].tolist() == [30, 10]


def test_columns_of_the_csv(write_cell, tmp_path):
    for corruption in ("zigzag", "blobs", *reversed(CORRUPTIONS)):
        write_cell("tent", corruption, 9)
    columns = list(frame_of(tmp_path).columns)
    assert columns[:19] == ["method", *CORRUPTIONS, "blobs", "zigzag", "mean"]
    for name in ("metric", "severity", "num_images", "seeds", "scope", "setting", "order",
                 "batch_size", "backbone", "weights", "templates", "resolution", "fingerprint",
                 "code", "commit", "delta_low_mean", "peak_memory_mb", "hyper_parameters"):
        assert name in columns
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("tent,10.0,10.0,")


def test_rows_come_in_natural_order(write_cell, write_config, tmp_path):
    for row in ("tent", "apm STEPS 20", "apm STEPS 5", "apm"):
        write_cell(row, "fog", 9)
    assert frame_of(tmp_path)["method"].tolist() == ["apm", "apm STEPS 5", "apm STEPS 20", "tent"]
    write_config(METHODS=["tent", "apm STEPS  20"])
    ordered = frame_of(tmp_path)["method"]
    assert ordered.tolist() == ["tent", "apm STEPS 20", "apm", "apm STEPS 5"]


@pytest.mark.parametrize("ending", [".npz", ".json"])
def test_a_truncated_file_is_named(write_cell, tmp_path, ending):
    path = write_cell("tent", "fog", 9)
    file = path.with_name(path.name + ending)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=re.escape(str(file))):
        make_tables(tmp_path).write(tmp_path)


def test_a_record_at_odds_with_its_predictions_is_a_user_error(write_cell, tmp_path):
    write_cell("tent", "fog", 9, num_correct=10)
    with pytest.raises(UserError, match="10 of 10 images are right, its predictions say 9 of 10"):
        make_tables(tmp_path).write(tmp_path)


@pytest.mark.parametrize("make", [False, True])
def test_no_results_are_a_user_error(tmp_path, make):
    if make:
        (tmp_path / "cells").mkdir()
    with pytest.raises(UserError, match="holds no results"):
        make_tables(tmp_path).write(tmp_path)


@pytest.mark.slow
def test_tables_need_no_torch():
    heavy = "{'torch', 'scipy', 'matplotlib', 'yaml', 'yacs', 'pandas'}"
    subprocess.run([sys.executable, "-c", "import sys; import tta_apm.report.write; "
                    f"assert not {heavy} & set(sys.modules)"], check=True)


def test_the_tables_are_equal_each_time(write_cell, tmp_path):
    write_cell("apm", "fog", 8, teacher=6)
    first = make_tables(tmp_path)
    assert first == make_tables(tmp_path)
    assert len(pd.read_csv(io.StringIO(first.files["table.csv"]))) == 1


def test_the_conditions_go_with_every_table(write_cell, tmp_path):
    write_cell("norm", "fog", 9, images_from="official CIFAR-10-C")
    write_cell("tent", "fog", 9, images_from="cifar10, corrupted on the fly", seed=3)
    tables = make_tables(tmp_path)
    for text in (tables.terminal, tables.files["table.md"], tables.files["table.tex"]):
        folded = " ".join(text.split())
        assert "Images of row 1: official CIFAR-10-C, 10 per domain, fog, seed 0." in folded
        assert "Images of row 2: cifar10, corrupted on the fly, 10 per domain, fog, seed 3." \
            in folded
    assert "official CIFAR-10-C" in tables.files["table.csv"]


def test_an_origin_is_named_once(write_cell, tmp_path):
    made = "cifar10, corrupted on the fly with cifar-C constants"
    write_cell("norm", "fog", 9, images_from=made)
    write_cell("norm", "frost", 9, images_from=f"{made}, official frost pictures")
    terminal = " ".join(make_tables(tmp_path).terminal.split())
    assert f"Images: {made}, official frost pictures, 10 per domain, frost fog, seed" in terminal


def test_what_was_not_counted_everywhere_has_no_mean(write_cell, tables):
    write_cell("tent", "fog", 9)
    write_cell("tent", "snow", 9, gflops_per_image=None)
    (table,) = tables()
    assert all(np.isnan(line.cost.gflops_per_image) for line in table.lines)


def test_a_folder_that_cannot_be_written_is_still_shown(write_cell, tmp_path, capsys):
    write_cell("tent", "fog", 9)
    (tmp_path / "table.md").mkdir()  # nobody can write there, an administrator neither
    assert cli.main(["table", str(tmp_path)]) == cli.BAD_INPUT
    said = capsys.readouterr()
    assert re.search(r"^fog +10\.0$", said.out, re.M)
    assert f"cannot write {tmp_path / 'table.md'}" in said.err
