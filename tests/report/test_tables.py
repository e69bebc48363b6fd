"""Tables: every average from the cells, nothing averaged over what is missing, teachers beside."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tta_apm import cli
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.errors import UserError
from tta_apm.report import plots
from tta_apm.report.build import build_tables
from tta_apm.report.formats import markdown
from tta_apm.report.results import Wanted, group_rows, load_results, load_rows
from tta_apm.report.table import ClearColumns
from tta_apm.report.write import make_tables


@pytest.fixture
def tables(tmp_path):
    """The tables of what was written."""
    return lambda **options: build_tables(group_rows(load_results(tmp_path), Wanted()), **options)


def column(table, name, field="value"):
    """One number of each line."""
    return np.array([getattr(line.figures[name], field) for line in table.lines])


def frame_of(folder, **options):
    make_tables(folder, **options).write(folder)
    return pd.read_csv(folder / "table.csv")


def test_averages_are_recomputed_from_the_cells(write_cell, tmp_path):
    for corruption, right in (("fog", 9), ("snow", 7), ("contrast", 2)):
        write_cell("tent", corruption, right)
    frame = frame_of(tmp_path)
    assert frame.loc[0, ["snow", "fog", "contrast"]].tolist() == [30, 10, 80]
    assert frame.loc[0, "mean"] == 40
    assert frame.loc[0, "seconds_per_image"] == 0.2


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
