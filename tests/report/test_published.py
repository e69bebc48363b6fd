"""Published rows: the paper's cells beside ours, averages recomputed, never mixed into ours."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from tta_apm import cli, config
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.registry import DATASETS
from tta_apm.report import published
from tta_apm.report.write import make_tables


@pytest.fixture
def write(write_cell):
    """Write a cell of 10 images, `right` of them classified rightly."""
    return lambda row, dataset, corruption, severity, right: write_cell(
        row, corruption, right, dataset=dataset, severity=severity)


def frame_of(folder, **options):
    make_tables(folder, published=True, **options).write(folder)
    return pd.read_csv(folder / "table.csv").set_index("method")


def test_table_2_by_its_cells(write, tmp_path):
    for corruption in CORRUPTIONS:
        write("tent", "imagenet_c", corruption, 5, 9)
    frame = frame_of(tmp_path, metric="accuracy")
    assert list(frame.index) == ["tent", *(f"{name} (published)" for name in (
        "Joint Train", "Fine-Tune", "ViT Probe", "TTT-MAE", "APM", "OpenCLIP ViT-L/14"))]
    # By hand, from the row as printed.
    apm = [77.4, 51.9, 56.6, 37.9, 64.8, 53.2, 28.7, 31.4, 33.0, 68.4, 44.1, 64.5, 33.1, 56.9, 43.9]
    assert frame.loc["APM (published)", "mean"] == pytest.approx(sum(apm) / 15, abs=1e-3)
    assert round(frame.loc["APM (published)", "mean"], 2) == 49.72
    assert round(frame.loc["OpenCLIP ViT-L/14 (published)", "mean"], 2) == 44.19
    assert frame.loc["APM (published)", ["brightness", "zoom_blur"]].tolist() == [77.4, 43.9]
    assert frame.loc["tent", "mean"] == 90
    text = (tmp_path / "table.md").read_text()
    assert ("Row 6 is published: Table 2 of Modi and Rawat, NeurIPS 2024 (arXiv 2410.20535); its "
            "average is 50.3 as printed, 49.72 by its cells; its teacher is the next row, OpenCLIP "
            "ViT-L/14.") in text


def test_error_and_accuracy_are_converted(write, tmp_path):
    write("tent", "imagenet_c", "fog", 5, 9)
    write("tent", "cifar10_c", "fog", 5, 9)
    error = frame_of(tmp_path, metric="error").set_index("dataset", append=True)["fog"]
    accuracy = frame_of(tmp_path, metric="accuracy").set_index("dataset", append=True)["fog"]
    assert error["APM (published)", "imagenet_c"] == 35.2
    assert accuracy["APM (published)", "imagenet_c"] == 64.8
    assert error["APM (published)", "cifar10_c"] == 13.5
    assert accuracy["APM (published)", "cifar10_c"] == 86.5


def test_table_10_with_and_without_the_clean_images(write, tmp_path):
    for corruption in CORRUPTIONS:
        write("tent", "cifar10_c", corruption, 5, 9)
    write("tent", "cifar10_c", "clean", 0, 10)
    frame = frame_of(tmp_path)
    assert round(frame.loc["APM (published)", "mean"], 2) == 16.44
    assert frame.loc["APM (published)", "clean"] == 3.5
    assert round(frame.loc["CLIP ViT-L/14 (published)", "mean"], 2) == 24.01
    text = (tmp_path / "table.md").read_text()
    assert "14.8 as printed, 16.44 by its cells (15.63 with 'original')" in text
    assert "19.1 as printed, 20.40 by its cells (19.64 with 'original')" in text


def test_the_mean_is_over_the_columns_that_ours_is_over(write, tmp_path):
    for corruption in ("fog", "snow"):
        write("tent", "imagenet_c", corruption, 5, 9)
    frame = frame_of(tmp_path, metric="accuracy")
    assert frame.loc["APM (published)", "mean"] == pytest.approx((64.8 + 56.9) / 2)


def test_several_severities_take_the_methods_of_all_their_tables(write, tmp_path):
    for severity in (4, 5):
        write("tent", "imagenet_c", "fog", severity, 9)
    frame = frame_of(tmp_path, metric="accuracy").set_index("severity", append=True)["fog"]
    assert frame["APM (published)", "4"] == 72.3
    assert frame["APM (published)", "5"] == 64.8
    assert frame["APM (published)", "mean of 4 5"] == pytest.approx((72.3 + 64.8) / 2)
    methods = {method for method, severity in frame.index if severity == "mean of 4 5"}
    assert methods == {"tent", *(f"{name} (published)" for name in (
        "TTT-MAE", "APM", "OpenCLIP ViT-L/14"))}
    assert "59.6 as printed, 60.67 by its cells; 50.3 as printed, 49.72 by its cells" in (
        tmp_path / "table.md").read_text()


@pytest.mark.parametrize("dataset, method, accuracy", [
    ("imagenet_r", "APM (ViT-B/16)", 76.5), ("imagenet_v2", "APM (ViT-H/14)", 83.9),
    ("dtd", "APM", 48.9), ("eurosat", "CoCoOp", 39.2)])
def test_clean_data_sets_take_their_column(write, tmp_path, dataset, method, accuracy):
    write("clip_zero_shot", dataset, "clean", 0, 9)
    frame = frame_of(tmp_path, metric="accuracy")
    assert frame.loc[f"{method} (published)", "clean"] == accuracy


def test_each_apm_row_is_followed_by_its_teachers(write, tmp_path):
    write("apm", "imagenet_a", "clean", 0, 9)
    methods = list(frame_of(tmp_path).index)
    for apm, teacher in published.NATURAL_SHIFTS.teachers.items():
        index = methods.index(f"{apm} (published)")
        assert methods[index + 1] == f"{teacher} (published)"
    assert len(set(methods)) == len(methods) == 13


def test_every_format_marks_them_and_none_makes_them_best(write, tmp_path):
    for row, right in (("norm", 1), ("tent", 2)):
        write(row, "imagenet_c", "fog", 5, right)
    tables = make_tables(tmp_path, metric="accuracy", published=True)
    printed, markdown, tex = tables.terminal, tables.files["table.md"], tables.files["table.tex"]
    assert len(re.findall(r"^\| \d+ +\| [^|]*\(published\)", markdown, re.M)) == 6
    assert re.findall(r"\*\*([\d.]+)\*\*", markdown) == ["20.0", "20.0"]  # ours, far below theirs
    assert tex.count("(published) &") == 6 and tex.count(r"\textbf{") == 2
    assert printed.count("(published): Table 2") == 6 and printed.count("*") == 3


def test_our_lines_are_the_same_with_and_without_them(write, tmp_path):
    for corruption, right in (("fog", 9), ("snow", 7)):
        write("tent", "imagenet_c", corruption, 5, right)
    make_tables(tmp_path).write(tmp_path)
    alone = (tmp_path / "table.csv").read_text().splitlines()
    make_tables(tmp_path, published=True).write(tmp_path)
    assert (tmp_path / "table.csv").read_text().splitlines()[:2] == alone


def test_other_data_sets_and_severities_have_none(write, tmp_path):
    for dataset, severity in (("digits_c", 5), ("cifar10_jpeg_c", 5), ("cifar10_c", 3)):
        write("tent", dataset, "fog", severity, 9)
    assert list(frame_of(tmp_path).index) == ["tent"] * 3


def test_the_tables_are_of_data_sets_that_there_are():
    for dataset in published.CORRUPTED:
        DATASETS.check(dataset)
    for table in (published.NATURAL_SHIFTS, published.CROSS_DATASET):
        for cells in published.read_table(table).values():
            for dataset in cells:
                if not dataset.endswith("as_printed"):
                    DATASETS.check(dataset)


def test_a_key_and_an_option_show_them(write, tmp_path, capsys):
    write("tent", "imagenet_c", "fog", 5, 9)
    assert cli.main(["table", str(tmp_path)]) == cli.OK
    assert "published" not in capsys.readouterr().out
    assert cli.main(["table", str(tmp_path), "--published"]) == cli.OK
    assert "APM (published): Table 2" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text("PUBLISHED: true\n")
    assert cli.main(["table", str(tmp_path)]) == cli.OK
    assert "APM (published): Table 2" in capsys.readouterr().out


@pytest.mark.parametrize("benchmark", [
    "cifar10_c", "imagenet_c", "imagenet", "imagenet_a", "imagenet_r", "imagenet_v2",
    "imagenet_sketch", "finegrained"])
def test_the_papers_benchmarks_show_them(benchmark):
    assert config.load(f"cfgs/{benchmark}/apm.yaml").PUBLISHED
    assert not config.load(f"cfgs/{benchmark}/apm.yaml", ["PUBLISHED", "false"]).PUBLISHED
