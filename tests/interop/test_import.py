"""Import: logs of other repositories become rows of tables."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest

from host_logs import HEAD, online_tta, robustbench
from tta_apm import cli
from tta_apm.errors import UserError
from tta_apm.interop import logs
from tta_apm.report import imported
from tta_apm.report.write import make_tables


def test_rows_stand_in_the_table_marked_and_without_intervals(log, ours, tmp_path):
    ours("fog", 7)
    ours("gaussian_noise", 9)
    for found in log(online_tta(seed=1)) + log(online_tta(seed=2, fog="14.34"), "second.txt"):
        imported.save(found, tmp_path)
    tables = make_tables(tmp_path)
    tables.write(tmp_path)
    text = tables.terminal
    frame = pd.read_csv(tmp_path / "table.csv").set_index("method")
    row = frame.loc["cotta (imported, online-tta)"]
    assert row[["fog", "gaussian_noise", "mean"]].tolist() == [13.34, 40, 26.67]
    assert row["std_mean"] == pytest.approx(np.sqrt(0.5), abs=1e-3)
    assert row["seeds"] == "1 2" and row["setting"] == "continual" and row["backbone"] == "Standard"
    assert row[["teacher_mean", "delta_mean", "seconds_per_image"]].isna().all()
    assert frame.loc["tent", "mean"] == 20
    assert "Row 2 is imported: from online-tta, run.txt, second.txt." in " ".join(text.split())


def test_an_imported_row_is_never_best(log, ours, tmp_path):
    ours("fog", 1)
    ours("fog", 2, row="norm")
    (found,) = log(online_tta(fog="0.00"))
    imported.save(found, tmp_path)
    make_tables(tmp_path).write(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "**80.0**" in table and "**0.0**" not in table and " 0.0 |" in table


def test_a_mean_is_not_taken_over_a_missing_cell(log, ours, tmp_path):
    ours("fog", 7)
    ours("snow", 7)
    (found,) = log(online_tta())
    imported.save(found, tmp_path)
    make_tables(tmp_path).write(tmp_path)
    frame = pd.read_csv(tmp_path / "table.csv").set_index("method")
    row = frame.loc["cotta (imported, online-tta)"]
    assert row["fog"] == 12.34 and row[["snow", "mean"]].isna().all()


def test_imported_rows_alone_make_a_table(log, tmp_path):
    (found,) = log(online_tta())
    imported.save(found, tmp_path)
    make_tables(tmp_path, metric="accuracy").write(tmp_path)
    frame = pd.read_csv(io.StringIO((tmp_path / "table.csv").read_text()))
    assert frame.loc[0, ["fog", "mean", "metric"]].tolist() == [87.66, 73.83, "accuracy %"]


def test_the_command(log, tmp_path, capsys):
    log(online_tta())
    words = ["import", str(tmp_path / "run.txt"), "--into", str(tmp_path / "results")]
    assert cli.main(words) == cli.main(words) == 0
    assert ("online-tta cotta · Standard · cifar10_c: gaussian_noise fog at severity 5 · 10000 "
            "images each · images not stated · seed 1 · mean error 26.17 % over 2 domains") in \
        capsys.readouterr().out
    (kept,) = (tmp_path / "results/imported").iterdir()
    assert json.loads(kept.read_text())["imported"] is True
    assert cli.main(["table", str(tmp_path / "results")]) == 0
    assert "cotta (imported, online-tta)" in (tmp_path / "results/table.md").read_text()
    kept.write_text("{}")
    assert cli.main(["table", str(tmp_path / "results")]) == 2
    assert "is not an imported log" in capsys.readouterr().err


def run(folder, *names: str) -> int:
    return cli.main(["import", *(str(folder / name) for name in names), "--into",
                     str(folder / "results")])


def headings(folder) -> list[str]:
    return list(pd.read_csv(io.StringIO(
        make_tables(folder).files["table.csv"]))["method"])


def test_logs_that_differ_in_any_setting_are_two_rows(log, tmp_path):
    """Two runs of cotta that differ in COTTA.RST only used to be one row, that of the last run."""
    for rst, fog in ((0.01, "12.00"), (0.1, "40.00")):
        text = online_tta(fog=fog).replace("MODEL:", f"COTTA:\n  RST: {rst}\nMODEL:")
        imported.save(log(text)[0], tmp_path)
    frame = pd.read_csv(io.StringIO(make_tables(tmp_path).files["table.csv"])).set_index("method")
    assert frame["fog"].to_dict() == {"cotta COTTA.RST 0.01 (imported, online-tta)": 12,
                                      "cotta COTTA.RST 0.1 (imported, online-tta)": 40}


def test_a_setting_that_one_log_lacks_tells_rows_apart(log, tmp_path):
    imported.save(log(online_tta())[0], tmp_path)
    imported.save(log(online_tta().replace("SETTING:", "NEW: 1\nSETTING:"))[0], tmp_path)
    assert sorted(headings(tmp_path)) == ["cotta NEW 1 (imported, online-tta)",
                                          "cotta NEW not stated (imported, online-tta)"]


def test_a_text_of_two_runs_is_two_rows(log):
    """cotta after tent in one log: they used to be one row, the mean of both."""
    second = online_tta(fog="30.00").replace("cotta", "tent")
    first, other = log(online_tta() + "\n" + second)
    assert (first.method, first.errors[0][2], other.method, other.errors[0][2]) == (
        "cotta", 0.1234, "tent", 0.3)
    bare = "cifar10_c error % [fog5][#samples=10]: 97.80%\n"
    with pytest.raises(UserError, match="fog 5 is in lines 1 and 2"):
        log(bare + bare.replace("97.80", "30.00"))


def test_a_date_among_the_settings_is_text(log, tmp_path):
    (found,) = log(online_tta().replace("LR: 0.001", "LR: 2024-01-01"))
    assert found.hyper_parameters["lr"] == "2024-01-01"
    imported.save(found, tmp_path)
    assert imported.load(tmp_path) == [found]


def test_a_run_that_broke_off_has_gaps(log, tmp_path):
    text = online_tta().replace("  SEVERITY: [5]", "  SEVERITY: [5]\n  TYPE: [fog, gaussian_noise, "
                                "snow]")
    (found,) = log(text)
    assert found.missing == [("snow", 5)]
    imported.save(found, tmp_path)
    tables = make_tables(tmp_path)
    frame = pd.read_csv(io.StringIO(tables.files["table.csv"]))
    assert frame.loc[0, "fog"] == 12.34 and frame.loc[0, ["snow", "mean"]].isna().all()
    assert "Row 1: 1 of 3 cells missing" in " ".join(tables.terminal.split())


def test_images_that_ttab_made_are_not_those_on_disk(log, tmp_path):
    for made in ("deterministic", "stochastic"):
        (tmp_path / "arguments.json").write_text(json.dumps(
            {"model_adaptation_method": "tent", "model_name": "resnet26", "seed": 1,
             "data_names": f"cifar10_c_{made}-fog-5"}))
        (found,) = log(json.dumps([{"type": "overall", "accuracy_top1": 60.5}]), "log-1.json")
        imported.save(found, tmp_path)
    assert sorted(headings(tmp_path)) == [
        "tent images files on disk (imported, ttab)",
        "tent images made by the host on the fly (imported, ttab)"]
    assert "made by the host on the fly, how many is not stated" in \
        make_tables(tmp_path).files["table.md"]


def test_rows_of_robustbench_are_headed_by_their_models_and_none_is_lost(log, tmp_path):
    text = robustbench().replace("Standard", "A-B").replace("Half", "A_B")
    for found in log(text, "model_info/cifar10/corruptions/unaggregated_results.csv"):
        imported.save(found, tmp_path)
    assert set(headings(tmp_path)) == {"A-B (imported, robustbench)", "A_B (imported, robustbench)"}


def test_a_method_of_ours_in_a_host_is_told_from_the_hosts(log, tmp_path):
    said = HEAD.format("hosted.py:   87") + 'tta-apm runs cotta over Standard: {"seed": 1}'
    for extra in ("", said):
        imported.save(log(online_tta(extra=extra))[0], tmp_path)
    assert set(headings(tmp_path)) == {"cotta (imported, online-tta)",
                                       "cotta (imported, ours in online-tta)"}
    text = make_tables(tmp_path).files["table.md"]
    assert text.count("seed 1") >= 2  # as the docs promise


def test_equal_cells_of_two_logs_are_refused(log, tmp_path, capsys):
    log(online_tta(fog="12.00"), "a.txt")
    log(online_tta(fog="40.00"), "b.txt")
    assert run(tmp_path, "a.txt", "b.txt") == 1
    said = capsys.readouterr()
    assert f"skipped {tmp_path / 'b.txt'}: a.txt" in said.err
    assert "hold the same cell, cotta of online-tta on fog 5" in said.err
    assert "1 of 2 files are imported, 1 skipped" in said.out
    assert run(tmp_path, "a.txt") == 0  # the same log again
    for name in ("a.txt", "b.txt"):
        imported.save(logs.read(tmp_path / name)[0], tmp_path)
    with pytest.raises(UserError, match="hold the same cell"):
        make_tables(tmp_path)


def test_a_log_that_broke_off_does_not_keep_the_others_out(log, tmp_path, capsys):
    log(online_tta(), "a.txt")
    log(online_tta(seed=2), "c.txt")
    (tmp_path / "b.txt").write_text(HEAD.format("conf.py:  419") + "PyTorch Version: torch=2.4")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    assert run(tmp_path, "a.txt", "b.txt", "c.txt", "d.txt") == 1
    said = capsys.readouterr()
    assert f"skipped {tmp_path / 'b.txt'}: it holds no results" in said.err
    assert f"skipped {tmp_path / 'd.txt'}: it cannot be read as text" in said.err
    assert "2 of 4 files are imported, 2 skipped" in said.out
    assert len(list((tmp_path / "results/imported").iterdir())) == 2
    assert run(tmp_path, "b.txt", "d.txt") == 2
    assert "none of the 2 files" in capsys.readouterr().err


def test_what_is_on_a_severity_of_its_own_gets_a_table(log, ours, tmp_path):
    ours("fog", 7)
    imported.save(log("cifar10_c error % [fog3][#samples=9]: 5.00%")[0], tmp_path)
    tables = make_tables(tmp_path)
    frame = pd.read_csv(io.StringIO(tables.files["table.csv"]))
    assert frame[["severity", "fog"]].values.tolist() == [[3, 5], [5, 30]]
    assert "tent" in tables.terminal and "see table.md" in tables.terminal


def test_a_log_of_version_0_1_0_is_read(log, tmp_path):
    path = imported.save(log(online_tta())[0], tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items()
                                if name not in ("settings", "missing", "ours")}))
    assert headings(tmp_path) == ["cotta (imported, online-tta)"]


@pytest.mark.parametrize("field, value", [
    ("errors", [["fog", 5, 49.5, 10]]), ("errors", [["fog", 0, 0.5, 10]]), ("errors", []),
    ("errors", [["fog", 5]]), ("errors", 3), ("method", 3), ("method", ""), ("settings", []),
    ("seed", "a"), ("batch_size", 0), ("errors", [["fog", 5, 0.1, 1], ["fog", 5, 0.1, 1]])])
def test_a_kept_log_with_a_wrong_field_is_named(log, tmp_path, field, value):
    path = imported.save(log(online_tta())[0], tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=path.name):
        make_tables(tmp_path)


def test_names_of_a_log_cannot_break_a_table(log, tmp_path):
    text = online_tta().replace("ADAPTATION: cotta", r'ADAPTATION: "=x\e[2J\n| 9 | forged |"')
    imported.save(log(text)[0], tmp_path)
    tables = make_tables(tmp_path)
    assert not any("\x1b" in each for each in (tables.terminal, *tables.files.values()))
    assert tables.files["table.md"].count("\n|") == 3  # head, rule and the row
    assert "'=x?[2J" in tables.files["table.csv"]
