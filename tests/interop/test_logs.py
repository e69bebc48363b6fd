"""Reading the logs of other repositories, and errors for invalid ones."""

from __future__ import annotations

import json

import pytest

from host_logs import CONFIG, HEAD, online_tta, robustbench
from tta_apm.errors import UserError


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


@pytest.mark.parametrize("change, said", [
    (lambda text: text.replace("Half", "Standard"), "has model 'Standard' in 2 lines"),
    (lambda text: text.replace("0.5,", "50.5,", 1), "the line of Half has 50.5 for shot_noise 1"),
    (lambda text: text.replace("0.5,", ",", 1), "the line of Half has nan for shot_noise 1"),
])
def test_a_table_of_robustbench_that_cannot_be_is_told(log, change, said):
    with pytest.raises(UserError, match=said):
        log(change(robustbench()), "model_info/cifar10/corruptions/unaggregated_results.csv")
