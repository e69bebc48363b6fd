"""Records of version 0.1.0, damaged ones, and those that no run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tta_apm import cli
from tta_apm.bench.records import find_records, load_record


def the_record(folder: Path):
    file, = find_records(folder / "cells")
    return load_record(file)


def as_of_0_1_0(folder: Path) -> None:
    for file in (folder / "cells").rglob("*.json"):
        content = json.loads(file.read_text())
        del content["identity"]
        file.write_text(json.dumps(content))


@pytest.mark.slow
def test_records_of_0_1_0_are_shown_marked_and_redone(run, tmp_path, capsys):
    assert run()[0] == cli.OK
    folder = tmp_path / "results"
    as_of_0_1_0(folder)
    assert cli.main(["table", str(folder)]) == cli.OK
    assert "recorded by version 0.1.0" in capsys.readouterr().out
    exit_code, printed = run()
    assert exit_code == cli.BAD_INPUT and "by version 0.1.0" in printed.err
    assert run("--redo")[0] == cli.OK
    assert the_record(folder).identity["settings"]["method"] == "source"


@pytest.mark.slow
def test_config_yaml_stays_as_it_was_where_a_run_is_refused(run, tmp_path):
    assert run()[0] == cli.OK
    before = (tmp_path / "results/config.yaml").read_text()
    assert run("BATCH_SIZE", "3")[0] == cli.BAD_INPUT
    assert (tmp_path / "results/config.yaml").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("field, value", [
    ("row", 5), ("severity", "5"), ("severity", 9), ("num_images", -1), ("num_images", 10**400),
    ("seconds", None), ("seconds", -1.0), ("seconds", float("nan")), ("seed", 10**400),
    ("peak_memory_mb", "much"), ("gflops_per_image", []), ("hyper_parameters", []),
    ("versions", "1"), ("num_correct", 99), ("batch_size", True), ("identity", "x")])
def test_a_record_of_wrong_types_or_ranges_is_named_with_its_field(run, tmp_path, field, value):
    assert run()[0] == cli.OK
    file, = find_records(tmp_path / "results/cells")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, field: value}))
    exit_code, printed = run()
    assert exit_code == cli.BAD_INPUT and str(file) in printed.err and field in printed.err
    assert run("--redo")[0] == cli.OK


@pytest.mark.slow
@pytest.mark.parametrize("name, column", [
    ("index", np.array([0.5] * 6)), ("index", np.array([10**12] + [0] * 5)),
    ("index", np.array([-1] * 6)), ("label", np.zeros((6, 1), np.int64)),
    ("prediction", np.zeros(5, np.int64)), ("prediction", np.array(["a"] * 6)),
    ("confidence", np.full(6, 9e9, np.float32)), ("confidence", np.full(6, np.nan, np.float32))])
def test_predictions_that_no_run_leaves_are_named(run, tmp_path, name, column):
    import io

    from tta_apm.bench.records import hash_bytes
    assert run()[0] == cli.OK
    file, = find_records(tmp_path / "results/cells")
    arrays = dict(np.load(file.with_suffix(".npz")))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**arrays, name: column})
    file.with_suffix(".npz").write_bytes(buffer.getvalue())
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "predictions_hash": hash_bytes(buffer.getvalue())}))
    exit_code, printed = run()
    assert exit_code == cli.BAD_INPUT and str(file) in printed.err.replace(".npz", ".json")
    assert name in printed.err


@pytest.mark.slow
def test_a_redo_that_was_killed_leaves_a_folder_that_goes_on(run, tmp_path):
    assert run()[0] == cli.OK
    file, = find_records(tmp_path / "results/cells")
    predictions = file.with_suffix(".npz").read_bytes()
    file.with_suffix(".npz").write_bytes(predictions + b"of other predictions")
    assert run("--redo")[0] == cli.OK  # as version 0.1.0 left it
    file.unlink()  # as this one leaves it
    assert run()[0] == cli.OK


@pytest.mark.slow
def test_damaged_records_are_counted_in_one_go(run, tmp_path):
    assert run("SEEDS", "[1,2,3]")[0] == cli.OK
    for file in find_records(tmp_path / "results/cells"):
        file.write_text("{}")
    exit_code, printed = run("SEEDS", "[1,2,3]")
    assert exit_code == cli.BAD_INPUT and "and 2 more like it" in printed.err
