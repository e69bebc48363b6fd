"""Import: logs of other repositories become rows of our tables, as far as they tell."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest

from tta_apm import cli
from tta_apm.errors import UserError
from tta_apm.interop import logs
from tta_apm.interop.robustbench import DOMAINS
from tta_apm.report import imported
from tta_apm.report.write import make_tables

HEAD = "[26/11/21 10:00:00] [{}]: "
CONFIG = """BN:
  ALPHA: 0.1
CORRUPTION:
  DATASET: cifar10_c
  NUM_EX: -1
  SEVERITY: [5]
MODEL:
  ADAPTATION: cotta
  ARCH: Standard
OPTIM:
  LR: 0.001
  METHOD: Adam
  STEPS: 1
RNG_SEED: {seed}
SETTING: continual
TEST:
  BATCH_SIZE: 200"""


def online_tta(seed: int = 1, fog: str = "12.34", extra: str = "") -> str:
    """A log of mariodoebler/test-time-adaptation."""
    return "\n".join([
        HEAD.format("conf.py:  419") + "PyTorch Version: torch=2.4",
        HEAD.format("conf.py:  420") + CONFIG.format(seed=seed), *filter(None, [extra]),
        HEAD.format("test_time.py:   76") + "resetting model",
        HEAD.format("test_time.py:  123")
        + f"cifar10_c error % [fog5][#samples=10000]: {fog}%",
        HEAD.format("test_time.py:   81") + "not resetting model",
        HEAD.format("test_time.py:  123")
        + "cifar10_c error % [gaussian_noise5][#samples=10000]: 40.00%",
        HEAD.format("test_time.py:  126") + "mean error: 26.17%, mean error at 5: 26.17%"])


@pytest.fixture
def ours(write_cell):
    """Write a cell of ours: 10 images, `right` of them classified rightly."""
    return lambda corruption, right, row="tent": write_cell(row, corruption, right,
                                                            dataset="cifar10_c")


@pytest.fixture
def log(tmp_path):
    """Write a log; what is read of it."""
    def read(text, name="run.txt", **options):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return logs.read(file, **options)
    return read


def test_a_log_of_online_tta_tells_its_protocol(log):
    (found,) = log(online_tta())
    assert found.errors == [("fog", 5, 0.1234, 10000), ("gaussian_noise", 5, 0.4, 10000)]
    assert (found.host, found.method, found.backbone, found.dataset, found.setting,
            found.batch_size, found.seed) == ("online-tta", "cotta", "Standard", "cifar10_c",
                                              "continual", 200, 1)
    assert found.hyper_parameters == {"lr": 0.001, "method": "Adam", "steps": 1}


def test_our_methods_in_a_host_go_by_their_own_name_and_settings(log):
    said = HEAD.format("hosted.py:   87") + 'tta-apm runs apm over ViT-B-16: '
    said += '{"seed": 1, "steps": 20}'
    (found,) = log(online_tta(extra=said))
    assert (found.method, found.backbone, found.hyper_parameters) == ("apm", "ViT-B-16",
                                                                      {"steps": 20})


def test_a_mixture_is_told_apart_by_domain(log):
    text = online_tta().splitlines()[:18] + [
        HEAD.format("test_time.py:  123") + "cifar10_c error % [mixed5][#samples=20000]: 26.00%",
        HEAD.format("eval_utils.py:  52") + "Splitting the results by domain...",
        HEAD.format("eval_utils.py:  62") + "fog                  error: 12.00%",
        HEAD.format("eval_utils.py:  62") + "gaussian_noise       error: 40.00%",
        HEAD.format("eval_utils.py:  63") + "Average error across all domains: 26.00%"]
    (found,) = log("\n".join(text))
    assert [entry[:3] for entry in found.errors] == [("fog", 5, 0.12), ("gaussian_noise", 5, 0.4)]


def test_a_domain_that_a_gradual_run_visits_twice_counts_once(log):
    again = HEAD.format("test_time.py:  123") + "cifar10_c error % [fog5][#samples=10000]: 12.36%"
    text = online_tta() + "\n" + again
    (found,) = log(text.replace("SETTING: continual", "SETTING: gradual"))
    assert found.errors[0] == ("fog", 5, 0.1235, 10000)
    with pytest.raises(UserError, match="fog 5 is in lines 20 and 24, and its run is not"):
        log(text)


def test_clean_images_and_whole_imagenet_c(log):
    (found,) = log("imagenet_k error % [][#samples=50889]: 70.00%")
    assert (found.dataset, found.errors[0][:2]) == ("imagenet_sketch", ("clean", 0))
    (found,) = log("imagenet_c error % [fog5][#samples=50000]: 70.00%")
    assert found.dataset == "imagenet_c_50k"


def test_accuracy_of_benchmark_tta_becomes_error(log):
    (found,) = log("cifar10_c accuracy % [fog5][#samples=10000]: 66.67%")
    assert (found.host, found.errors) == ("benchmark-tta", [("fog", 5, 0.3333, 10000)])


def test_a_log_of_tent_counts_its_images_by_its_config(log):
    text = (CONFIG.format(seed=2).replace("cifar10_c", "cifar10").replace("-1", "10000")
            .replace("SETTING: continual\n", ""))
    (found,) = log(HEAD.format("conf.py: 200") + text + "\n"
                   + HEAD.format("cifar10c.py: 49") + "error % [fog5]: 72.30%")
    assert (found.host, found.dataset, found.errors) == ("tent", "cifar10_c",
                                                         [("fog", 5, 0.723, 10000)])


def test_a_log_of_ttab_is_read_with_its_arguments(log, tmp_path):
    arguments = {"model_adaptation_method": "apm", "model_name": "resnet26", "seed": 2022,
                 "data_names": "cifar10_c_deterministic-fog-5", "batch_size": 64, "lr": 0.001,
                 "data_size": 100, "episodic": False, "tta_apm": {"APM": {"STEPS": 20}},
                 "tta_apm_backbone": "ViT-B-16"}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    entries = [{"type": "step", "accuracy_top1": 1.0}, {"type": "overall", "accuracy_top1": 60.5}]
    (found,) = log(json.dumps(entries), "log-1.json")
    assert (found.dataset, found.errors) == ("cifar10_c", [("fog", 5, 0.395, 100)])
    assert (found.method, found.backbone, found.hyper_parameters, found.seed) == (
        "apm", "ViT-B-16", {"steps": 20}, 2022)
    arguments["data_names"] += ";cifar10_c_deterministic-snow-5"
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    with pytest.raises(UserError, match="one accuracy over 2 domains"):
        log(json.dumps(entries), "log-1.json")


def test_a_network_of_ours_is_named_where_a_method_of_the_host_adapted_it(log, tmp_path):
    text = online_tta().replace("CORRUPTION:", "CLASSIFIER:\n  MODEL: net.py:mine\nCORRUPTION:", 1)
    assert log(text)[0].backbone == "net.py:mine"
    assert log(text.replace("net.py:mine", "''"))[0].backbone == "Standard"


def test_a_method_of_ours_in_ttab_goes_by_its_own_name(log, tmp_path):
    arguments = {"model_adaptation_method": "tta_apm_tent", "model_name": "resnet26",
                 "data_names": "cifar10_c_deterministic-fog-5", "data_size": 100, "seed": 1,
                 "tta_apm": {"TTA_APM_TENT": {"LR": 0.1}}}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    (found,) = log(json.dumps([{"type": "overall", "accuracy_top1": 60.5}]), "log-1.json")
    assert (found.method, found.hyper_parameters, found.ours) == ("tent", {"lr": 0.1}, True)


def robustbench() -> str:
    frame = pd.DataFrame([np.linspace(0.2, 0.9, 75), np.full(75, 0.5)], index=["Standard", "Half"],
                         columns=pd.MultiIndex.from_tuples(DOMAINS))
    return frame.to_csv()


def test_a_table_of_robustbench_has_a_row_per_model(log):
    name = "model_info/cifar10/corruptions/unaggregated_results.csv"
    first, second = log(robustbench(), name)
    assert (first.backbone, first.dataset, len(first.errors)) == ("Standard", "cifar10_c", 75)
    assert first.errors[0] == ("shot_noise", 1, 0.8, None)
    assert {error for _, _, error, _ in second.errors} == {0.5}
    assert [row.backbone for row in log(robustbench(), name, models=["Half"])] == ["Half"]
    with pytest.raises(UserError, match="has no model 'Third'; it has Standard, Half"):
        log(robustbench(), name, models=["Third"])
    with pytest.raises(UserError, match="give --dataset"):
        log(robustbench(), "table.csv")
    assert log(robustbench(), "table.csv", dataset="imagenet_c")[0].dataset == "imagenet_c"


@pytest.mark.parametrize("text, name, said", [
    ("nothing here", "run.txt", "holds no results"),
    ("error % [fog5]: 72.30%", "run.txt", "does not state its data set"),
    ("a,b\n1,2\n", "model_info/cifar10/table.csv", "is not an unaggregated_results.csv"),
    ("{", "log-1.json", "is incomplete or not a log of ttab"),
], ids=["strange", "dataset", "csv", "json"])
def test_what_cannot_be_read_is_told(log, text, name, said):
    with pytest.raises(UserError, match=said):
        log(text, name)


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
    """Two runs of cotta that differ in COTTA.RST only were one, the last of them won."""
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
    """cotta after tent: they were one row, the mean of both."""
    second = online_tta(fog="30.00").replace("cotta", "tent")
    first, other = log(online_tta() + "\n" + second)
    assert (first.method, first.errors[0][2], other.method, other.errors[0][2]) == (
        "cotta", 0.1234, "tent", 0.3)
    bare = "cifar10_c error % [fog5][#samples=10]: 97.80%\n"
    with pytest.raises(UserError, match="fog 5 is in lines 1 and 2"):
        log(bare + bare.replace("97.80", "30.00"))


@pytest.mark.parametrize("line, said", [
    ("cifar10_c error % [fog5][#samples=9]: 250.00%", "line 2: 250.00% is not between 0 and 100"),
    ("cifar10_c error % [fog5][#samples=9]: 1.2.3%", "line 2: 1.2.3% is not between 0 and 100"),
    ("cifar10_c error % [fog5][#samples=9]: -3.00%", "line 2: -3.00% is not between 0 and 100"),
    ("cifar10_c error % [fog5][#samples=9]: nan%", "line 2: nan% is not between 0 and 100"),
    ("cifar100_c error % [fog5][#samples=9]: 5.00%", "lines 1 and 2 are of two data sets"),
    ("cifar10_c accuracy % [fog5][#samples=9]: 5.00%", "lines 1 and 2 are of two data sets or of"),
    ("cifar10_c error % [fog][#samples=9]: 5.00%", "line 2: fog has no severity"),
    ("cifar10_c error % [fog9][#samples=9]: 5.00%", r"severity of 1 to 5\) is \['fog', 9\]"),
    ("cifar10_c error % [fog5][#samples=0]: 5.00%", None),
])
def test_what_no_run_can_have_is_named_with_its_file_and_line(log, line, said):
    text = f"cifar10_c error % [snow5][#samples=9]: 5.00%\n{line}"
    if said is None:
        assert log(text)[0].errors[1][3] is None
        return
    with pytest.raises(UserError, match=f"run.txt.*{said}"):
        log(text)


@pytest.mark.parametrize("old, new, said", [
    ("MODEL:\n  ADAPTATION: cotta\n  ARCH: Standard\n", "MODEL:\n", "MODEL of its config is None"),
    ("TEST:\n  BATCH_SIZE: 200", "TEST:", "TEST of its config is None"),
    ("BATCH_SIZE: 200", "BATCH_SIZE: many", "its batch size is 'many'"),
    ("RNG_SEED: 1", "RNG_SEED: 2024-01-01", "its seed is datetime"),
    ("RNG_SEED: 1", "RNG_SEED: 2024-99-99", "is not YAML"),
    ("ADAPTATION: cotta", "ADAPTATION: 2024-01-01", "its method is datetime"),
    ("ADAPTATION: cotta", "ADAPTATION: [", "its config in line 2 is not YAML"),
    ("ADAPTATION: cotta", "ADAPTATION: ''", "its method is ''"),
    ("SETTING: continual", "SETTING: &a x\nOTHER: *a", "is not one that a host prints"),
])
def test_a_config_that_no_host_prints_is_told(log, old, new, said):
    text = online_tta()
    assert old in text
    with pytest.raises(UserError, match=f"run.txt.*{said}"):
        log(text.replace(old, new))


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


@pytest.mark.parametrize("change, said", [
    ({"accuracy_top1": 250.0}, "accuracy_top1 250.0 is not between 0 and 100"),
    ({"accuracy_top1": float("nan")}, "accuracy_top1 nan is not between 0 and 100"),
    ({"accuracy_top1": "60"}, "accuracy_top1 '60' is not between 0 and 100"),
    ({"data_names": "cifar10_c_deterministic-fog-²"}, "has no severity from 1 to 5"),
    ({"data_names": "cifar10_c_deterministic-fog-9"}, "severity of 1 to 5"),
    ({"batch_size": []}, "batch size is"), ({"data_size": "all"}, "number of images of fog 5"),
    ({"tta_apm": []}, "is incomplete or not a log of ttab"),
    ({"model_adaptation_method": 3}, "not a log of ttab"),
])
def test_a_log_of_ttab_that_cannot_be_is_told(log, tmp_path, change, said):
    arguments = {"model_adaptation_method": "tent", "model_name": "resnet26", "seed": 1,
                 "data_names": "cifar10_c_deterministic-fog-5", "batch_size": 64, **change}
    accuracy = arguments.pop("accuracy_top1", 60.5)
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    with pytest.raises(UserError, match=said):
        log(json.dumps([{"type": "overall", "accuracy_top1": accuracy}]), "log-1.json")


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


@pytest.mark.parametrize("change, said", [
    (lambda text: text.replace("Half", "Standard"), "has model 'Standard' in 2 lines"),
    (lambda text: text.replace("0.5,", "50.5,", 1), "the line of Half has 50.5 for shot_noise 1"),
    (lambda text: text.replace("0.5,", ",", 1), "the line of Half has nan for shot_noise 1"),
])
def test_a_table_of_robustbench_that_cannot_be_is_told(log, change, said):
    with pytest.raises(UserError, match=said):
        log(change(robustbench()), "model_info/cifar10/corruptions/unaggregated_results.csv")


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
