"""Import: logs of other repositories become rows of our tables, as far as they tell."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest

from tta_apm import cli
from tta_apm.errors import UserError
from tta_apm.report import imported, logs
from tta_apm.report.robustbench_entry import DOMAINS
from tta_apm.report.tables import make_tables

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


def test_a_domain_that_was_visited_twice_counts_once(log):
    again = HEAD.format("test_time.py:  123") + "cifar10_c error % [fog5][#samples=10000]: 12.36%"
    (found,) = log(online_tta() + "\n" + again)
    assert found.errors[0] == ("fog", 5, 0.1235, 10000)


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
    ("nothing here", "run.txt", "holds no results that are known here"),
    ("error % [fog5]: 72.30%", "run.txt", "does not tell its data set"),
    ("a,b\n1,2\n", "model_info/cifar10/table.csv", "is no unaggregated_results.csv"),
    ("{", "log-1.json", "is no whole log of ttab"),
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
    row = frame.loc["cotta (imported)"]
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
    row = pd.read_csv(tmp_path / "table.csv").set_index("method").loc["cotta (imported)"]
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
    assert "online-tta cotta · Standard · cifar10_c: 2 domains, mean error 26.17 %" in \
        capsys.readouterr().out
    (kept,) = (tmp_path / "results/imported").iterdir()
    assert json.loads(kept.read_text())["imported"] is True
    assert cli.main(["table", str(tmp_path / "results")]) == 0
    assert "cotta (imported)" in (tmp_path / "results/table.md").read_text()
    kept.write_text("{}")
    assert cli.main(["table", str(tmp_path / "results")]) == 2
    assert "is no imported log" in capsys.readouterr().err
