"""Export: results in the formats of leaderboards, and errors if they are incomplete."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tta_apm import cli
from tta_apm.commands.host import HOSTS
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.interop import citations
from tta_apm.interop.hosts import benchmark_tta
from tta_apm.interop.robustbench import ALEXNET, DOMAINS
from tta_apm.registry import DATASETS, FORMATS, METHODS, Registry
from tta_apm.report import imported
from tta_apm.report.imported_log import Log

pytestmark = pytest.mark.slow  # sweeps, processes or training


@pytest.fixture
def write(write_cell):
    """Write a cell, `right` of its images classified correctly."""
    def write(corruption="fog", severity=5, right=7, num_images=10, row="tent", seed=0, **fields):
        write_cell(row, corruption, right, severity=severity, num_images=num_images, seed=seed,
                   **{"dataset": "cifar10_c", "images_from": "official CIFAR-10-C",
                      "hyper_parameters": {"lr": 0.1, "steps": 3}} | fields)
    return write


@pytest.fixture
def whole(write):
    """Write all cells for RobustBench, with accuracy `share`, and 90 % on clean images."""
    def write_all(dataset, num_images, share, leave=(), **fields):
        for corruption, severity in DOMAINS:
            if (corruption, severity) not in leave:
                write(corruption, severity, round(share(corruption, severity) * num_images),
                      num_images, dataset=dataset, **fields)
        write("clean", 0, round(0.9 * num_images), num_images, dataset=dataset,
              **fields | {"images_from": "the clean images"})
    return write_all


def export(folder, *words: str) -> int:
    return cli.main(["export", *words[:1], str(folder), *words[1:]])


def robustbench(folder, *words: str) -> int:
    return export(folder, "robustbench", "--row", "tent", "--name", "Wang2021Tent", "--to",
                  str(folder / "model_info"), *words)


def robustbench_fields() -> set[str]:
    """The fields of robustbench's ModelInfo, from its source, since its import takes seconds."""
    package = importlib.util.find_spec("robustbench")
    text = (Path(package.submodule_search_locations[0]) / "utils.py").read_text()
    (schema,) = (node for node in ast.parse(text).body
                 if isinstance(node, ast.ClassDef) and node.name == "ModelInfo")
    return {field.target.id for field in schema.body if isinstance(field, ast.AnnAssign)}


def test_robustbench_takes_our_imagenet_entry(whole, tmp_path, capsys):
    # An accuracy 10 points above AlexNet's at every severity.
    whole("imagenet_c", 5000, lambda corruption, severity: 1 - 0.9 * ALEXNET[corruption],
          images_from="official ImageNet-C, 5000 images")
    assert robustbench(tmp_path, "--additional-data") == 0
    assert "not an entry" in capsys.readouterr().out
    folder = tmp_path / "model_info/imagenet/corruptions"
    info = json.loads((folder / "Wang2021Tent.json").read_text())
    assert set(info) <= robustbench_fields()
    assert info["corruptions_mce"] == "90.00" and info["clean_acc"] == "90.00"
    assert info["corruptions_acc"] == f"{100 - 90 * np.mean(list(ALEXNET.values())):.2f}"
    assert info["eps"] is None and info["additional_data"] is True
    assert (info["number_forward_passes"], info["venue"]) == (3, "ICLR 2021")
    assert info["authors"].startswith("Dequan Wang, Evan Shelhamer")
    assert info["name"] == "Tent: Fully Test-Time Adaptation by Entropy Minimization"


def test_the_table_is_the_one_that_robustbench_reads(whole, tmp_path):
    whole("cifar10_c", 10_000, lambda corruption, severity: severity / 10)
    assert robustbench(tmp_path) == 0
    file = tmp_path / "model_info/cifar10/corruptions/unaggregated_results.csv"
    head, severities, line = file.read_text().splitlines()[:3]
    assert head.split(",")[:7] == ["", *["shot_noise"] * 5, "motion_blur"]
    assert severities.split(",") == ["", *list("12345") * 15]
    assert line.split(",") == ["Wang2021Tent", *["0.1", "0.2", "0.3", "0.4", "0.5"] * 15]
    info = json.loads(file.with_name("Wang2021Tent.json").read_text())
    assert info["corruptions_acc"] == "30.00" and "corruptions_mce" not in info


def test_other_models_keep_their_line(whole, tmp_path):
    whole("cifar10_c", 10_000, lambda corruption, severity: 0.5)
    file = tmp_path / "model_info/cifar10/corruptions/unaggregated_results.csv"
    file.parent.mkdir(parents=True)
    pd.DataFrame([np.full(75, 0.25)], index=["Standard"],
                 columns=pd.MultiIndex.from_tuples(DOMAINS)).to_csv(file)
    assert robustbench(tmp_path) == robustbench(tmp_path) == 0
    frame = pd.read_csv(file, header=[0, 1], index_col=0)
    assert frame.mean(axis=1).to_dict() == {"Standard": 0.25, "Wang2021Tent": 0.5}


def test_robustbench_is_refused_what_it_does_not_hold(whole, write, tmp_path, capsys):
    def said(*words: str) -> str:
        assert robustbench(tmp_path, *words) == 2
        assert not (tmp_path / "model_info").exists()
        return capsys.readouterr().err

    whole("cifar10_c", 10, lambda corruption, severity: 0.5, leave=[("fog", 2), ("snow", 4)])
    assert "lacks 2 of RobustBench's 75 domains and the clean images (fog 2, snow 4)" in said()
    write("fog", 2, 5), write("snow", 4, 5)
    assert "has 10 images per domain, RobustBench's cifar10_c has 10000" in said()
    assert "--name must be RobustBench's NameYearWord" in said("--name", "../evil")
    assert "did you mean 'tent'?" in said("--row", "tend")


def test_robustbench_never_replaces_the_entry_of_somebody_else(whole, tmp_path, capsys):
    whole("cifar10_c", 10_000, lambda corruption, severity: 0.5)
    folder = tmp_path / "model_info/cifar10/corruptions"
    folder.mkdir(parents=True)
    table = folder / "unaggregated_results.csv"
    lines = pd.DataFrame([np.full(75, 0.25)] * 2, index=["Standard", "Other"],
                         columns=pd.MultiIndex.from_tuples(DOMAINS)).to_csv()
    table.write_text(lines)
    (folder / "Standard.json").write_text(json.dumps({"name": "Standard", "footnote": "theirs"}))
    for name, said in (("Standard", f"{folder / 'Standard.json'} is another entry"),
                       ("standard", "is another entry, or has this name in other letters"),
                       ("Other", f"{table} has a line Other of another entry")):
        assert robustbench(tmp_path, "--name", name) == 2
        assert said in capsys.readouterr().err
    assert table.read_text() == lines and len(list(folder.iterdir())) == 2
    assert robustbench(tmp_path) == robustbench(tmp_path) == 0  # ours replaces itself
    assert ("Row tent: official CIFAR-10-C, 10000 images per domain, 15 corruptions at severities "
            "1 2 3 4 5, seed 0.") in capsys.readouterr().out
    info = json.loads((folder / "Wang2021Tent.json").read_text())
    assert "official CIFAR-10-C, 10000 images per domain" in info["footnote"]


def test_robustbench_takes_no_row_whose_name_two_have(whole, write, tmp_path, capsys):
    whole("cifar10_c", 10_000, lambda corruption, severity: 0.5)
    write(setting="continual")
    assert robustbench(tmp_path) == 2
    assert "2 rows have this name" in capsys.readouterr().err


def test_robustbench_is_refused_images_that_are_not_the_published_ones(whole, tmp_path, capsys):
    whole("cifar10_c", 10_000, lambda corruption, severity: 0.5,
          images_from="cifar10, corrupted on the fly with CIFAR-C constants")
    assert robustbench(tmp_path) == 2
    assert "is not on the published images but on cifar10, corrupted on the fly" in \
        capsys.readouterr().err


def test_robustbench_has_no_board_for_digits(write, tmp_path, capsys):
    write(dataset="digits_c")
    assert robustbench(tmp_path) == 2
    assert "no leaderboard for digits_c" in capsys.readouterr().err


@pytest.fixture
def benchmark(write):
    """Write all cells for benchmark.md, with accuracy `share` under each corruption."""
    def write_all(share, leave=(), num_images=10_000, **fields):
        for corruption in CORRUPTIONS:
            if corruption not in leave:
                write(corruption, 5, round(share * num_images), num_images, **fields)
    return write_all


def test_benchmark_md_ranks_no_offline_row(benchmark, tmp_path, capsys):
    benchmark(0.5, row="source"), benchmark(0.9, row="shot", scope="domain")
    assert export(tmp_path, "online-tta") == 0
    assert "| net | 10.0 | **50.0** |" in capsys.readouterr().out


def test_benchmark_md_has_a_line_per_backbone(benchmark, write, tmp_path, capsys):
    benchmark(0.6), write("fog", 3, 1, 10_000)
    benchmark(0.5, row="source"), benchmark(0.9, row="norm", backbone="other")
    for seed, share in enumerate((0.2, 0.4, 0.6)):
        benchmark(share, row="apm", seed=seed, setting="continual", order="dirichlet 0.1")
    assert export(tmp_path, "online-tta") == 0
    assert capsys.readouterr().out == """\
## Correlated

#### CIFAR10-C
| Architecture | APM |
| --- | --- |
| net | **60.0**&plusmn;20 |

Images: official CIFAR-10-C, 10000 per domain, the 15 corruptions, severity 5, seeds 0 1 2.

## Reset each shift

#### CIFAR10-C
| Architecture | Source | TENT | BN-1 |
| --- | --- | --- | --- |
| net | 50.0 | **40.0** | - |
| other | - | - | **10.0** |

Images: official CIFAR-10-C, 10000 per domain, the 15 corruptions, severity 5, seeds 0.
"""


@pytest.mark.parametrize("change, said", [
    ({"images_from": "cifar10, corrupted on the fly"},
     "row 'tent' is not on the published images but on cifar10, corrupted on the fly"),
    ({"num_images": 300},
     "has 300 images per domain, benchmark.md's cifar10_c has 10000"),
    ({"leave": ("fog", "snow")},
     "lacks 2 of benchmark.md's 15 corruptions at severity 5 (fog 5, snow 5)"),
    ({"dataset": "digits_c"}, "benchmark.md has no table for digits_c"),
    ({"dataset": "imagenet_c_50k"}, "benchmark.md has no table for imagenet_c_50k"),
])
def test_benchmark_md_is_refused_what_it_is_not_about(benchmark, tmp_path, capsys, change, said):
    benchmark(0.5, **change)
    assert export(tmp_path, "online-tta") == 2
    told = capsys.readouterr()
    assert said in told.err and not told.out


def test_benchmark_md_is_refused_a_row_without_all_of_its_seeds(
        benchmark, write_config, tmp_path, capsys):
    benchmark(0.5, seed=1)
    write_config(DATASET="cifar10_c", CORRUPTIONS=list(CORRUPTIONS), SEEDS=[1, 2])
    assert export(tmp_path, "online-tta") == 2
    assert "lacks 15 of benchmark.md's 15 corruptions" in capsys.readouterr().err


def test_benchmark_md_is_refused_a_corruption_that_it_has_not(benchmark, write, tmp_path, capsys):
    benchmark(0.5), write("blobs", 5, 5, 10_000)
    assert export(tmp_path, "online-tta") == 2
    assert "benchmark.md has no corruption blobs" in capsys.readouterr().err


def test_a_method_of_the_host_goes_back_under_its_own_name(benchmark, tmp_path, capsys):
    for row, name in (("online_tta", "cotta"), ("online_tta NAME roid CFG a|b.yaml", "roid")):
        benchmark(0.5, row=row, hyper_parameters={"name": name, "cfg": ""})
    assert export(tmp_path, "online-tta") == 0
    assert r"| Architecture | CoTTA | ROID CFG a\|b.yaml |" in capsys.readouterr().out


def test_two_rows_never_share_a_place(benchmark, tmp_path, capsys):
    benchmark(0.5), benchmark(0.5, hyper_parameters={"lr": 0.2}, seed=1)
    assert export(tmp_path, "online-tta") == 2
    assert "two rows would be TENT of net on cifar10_c" in capsys.readouterr().err


def test_nothing_at_severity_5(write, tmp_path, capsys):
    write(severity=4)
    assert export(tmp_path, "online-tta") == 2
    assert "severity 5 only" in capsys.readouterr().err


@pytest.mark.parametrize("name, holds", [("csv", "method,fog,mean"), ("latex", "\\toprule")])
def test_plain_tables(write, tmp_path, capsys, name, holds):
    write()
    assert export(tmp_path, name, "--to", str(tmp_path / "out.txt")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.txt'}\n"
    assert holds in (tmp_path / "out.txt").read_text()


FORMAT = '''
def text(tables):
    return "".join(f"<td>{line.heading}<td>{line.mean.value}\\n"
                   for table in tables for line in table.lines)
'''


def test_a_format_of_another_package_is_one_file_and_one_line(write, tmp_path, capsys, monkeypatch):
    write(), write(row="norm", right=4)
    package = tmp_path / "package"
    (package / "my_format-1.0.dist-info").mkdir(parents=True)
    (package / "my_format.py").write_text(FORMAT)
    (package / "my_format-1.0.dist-info/METADATA").write_text("Name: my-format\nVersion: 1.0\n")
    (package / "my_format-1.0.dist-info/entry_points.txt").write_text(
        "[tta_apm.formats]\nhtml = my_format:text\n")
    monkeypatch.syspath_prepend(str(package))
    # What a new process finds.
    monkeypatch.setattr("tta_apm.commands.export.FORMATS", Registry("tta_apm.formats", "format"))
    assert export(tmp_path, "html") == 0
    assert capsys.readouterr().out == "<td>norm<td>0.6\n<td>tent<td>0.3\n"


def test_every_format_makes_a_text_of_the_same_tables(benchmark, tmp_path, capsys):
    benchmark(0.6)
    for name in FORMATS.names():
        assert export(tmp_path, name) == 0
        text = capsys.readouterr().out
        assert text.strip() and ("bibtex" == name or "40.0" in text)


def test_bibtex_of_what_was_used(write, tmp_path, capsys):
    write(), write(row="apm", backbone="clip")
    assert export(tmp_path, "bibtex") == 0
    text = capsys.readouterr().out
    assert {line.split("{")[1] for line in text.splitlines() if line.startswith("@")} == {
        "modi2024apm,", "wang2021tent,", "hendrycks2019corruptions,"}
    assert "keywords" not in text and text.count("{") == text.count("}")


def test_bibtex_of_methods_of_hosts_and_of_hosts(write, tmp_path, capsys):
    """For a host's method in a sweep, and for imported logs, also with two similar rows."""
    write(row="online_tta NAME santa", hyper_parameters={"name": "santa"})
    for rate in (0.1, 0.2):
        log = Log(host="ttab", file="log-1.json", file_hash=str(rate), method="note",
                  hyper_parameters={"lr": rate}, backbone="net", dataset="cifar10_c",
                  setting="online", batch_size=8, seed=1, errors=[("fog", 5, 0.5, 10)])
        imported.save(log, tmp_path)
    assert export(tmp_path, "bibtex") == 0
    text = capsys.readouterr().out
    assert {line.split("{")[1] for line in text.splitlines() if line.startswith("@")} == {
        "chakrabarty2023santa,", "marsden2024roid,", "gong2022note,", "zhao2023ttab,",
        "hendrycks2019corruptions,"}


def test_citations_are_for_what_there_is():
    """Names that are not in the registry are hosts or their methods."""
    theirs = {*HOSTS, "robustbench", *benchmark_tta.THEIRS, "norm_ema", "bntest", "bnalpha",
              "bnema", "santa", "gtta", "cmf", "rpl", "vte", "bn_adapt", "shot", "note",
              "conjugate_pl"}
    for _, found in citations.citations():
        assert found.keys() >= {"title", "author", "year", "url", "keywords"}
        assert citations.keywords(found) <= {*METHODS.names(), *DATASETS.names(), *theirs}, found


@pytest.mark.parametrize("name, shown", [("bntest", "BN-1"), ("DeYO", "DeYO"), ("rotta", "RoTTA"),
                                         ("santa", "SANTA"), ("adacontrast", "AdaCont.")])
def test_names_go_back_as_the_host_writes_them(benchmark, tmp_path, capsys, name, shown):
    benchmark(0.5, row=f"online_tta NAME {name}", hyper_parameters={"name": name})
    assert export(tmp_path, "online-tta") == 0
    assert f"| Architecture | {shown} |" in capsys.readouterr().out
