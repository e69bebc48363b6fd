"""Offline methods: they see all images of a domain, without labels, before they predict any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from sweeps import STRANGERS
from tta_apm import cli, evaluate, load_dataset
from tta_apm.bench import batches
from tta_apm.bench.batches import StreamImages, to_device
from tta_apm.bench.records import find_records, load_predictions, load_record
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import Domain
from tta_apm.data.digits import digits_c
from tta_apm.data.streams import Stream

CPU = torch.device("cpu")
FOG, SNOW = Domain("digits_c", "fog", 5), Domain("digits_c", "snow", 5)
ROWS = ["shot EPOCHS 1", "source", "shot EPOCHS 2"]


@pytest.fixture
def stream():
    data = digits_c(data_dir="", frost_dir=None)
    return Stream(data, [FOG, SNOW], num_images=10, batch_size=4, seed=1)


@pytest.fixture
def sweep(tmp_path):
    """Run rows on two domains of 12 digits; gives exit code and predictions by cell."""
    def sweep(rows, folder, *words, **keys):
        config = tmp_path / f"{folder}.yaml"
        config.write_text(yaml.safe_dump({
            "METHODS": rows, "CORRUPTIONS": ["fog", "contrast"], "NUM_IMAGES": 12, "BATCH_SIZE": 5,
            "SEEDS": [1], "OUTPUT_DIR": str(tmp_path / folder)} | keys))
        code = cli.main(["--cfg", str(config), *words])
        return code, {str(file.relative_to(tmp_path / folder)): file.read_bytes()
                      for file in (tmp_path / folder).rglob("*.npz")}
    return sweep


def records(folder):
    return [load_record(path) for path in find_records(folder / "cells")]


# What a method is shown

def test_images_are_those_of_the_stream_in_its_order(stream):
    images = StreamImages(stream, CPU)
    whole = torch.cat([to_device(batch.images, CPU) for batch in stream])
    assert len(images) == 20
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for part in order.split(6):
        assert torch.equal(images.batch(part), whole[part])
    assert torch.equal(images.batch(torch.tensor([3, 3, 0])), whole[[3, 3, 0]])


@pytest.mark.parametrize("kept, fetched_again", [(12, 8), (20, 0), (0, 20)])
def test_pixels_are_kept_as_far_as_there_is_room(stream, monkeypatch, kept, fetched_again):
    monkeypatch.setattr(batches, "CACHE_MB", kept * 32 * 32 * 3 / 2**20)
    images, fetched, original = StreamImages(stream, CPU), [], Corrupted.images
    monkeypatch.setattr(Corrupted, "images", lambda self, domain, indices: (
        fetched.extend(indices), original(self, domain, indices))[1])
    first = images.batch(torch.arange(20))
    assert len(fetched) == 20
    assert torch.equal(images.batch(torch.arange(20)), first)
    assert len(fetched) == 20 + fetched_again


# In a sweep

@pytest.mark.slow
def test_an_offline_row_gives_the_same_in_any_company_and_setting(sweep):
    code, alone = sweep(ROWS, "alone", "TOGETHER", "1")
    assert code == cli.OK and len(alone) == 6
    assert sweep(ROWS, "together") == (cli.OK, alone)
    assert sweep(ROWS, "two", "--workers", "2") == (cli.OK, alone)
    _, continual = sweep(ROWS, "continual", "SETTING", "continual")  # starts anew all the same
    assert [*continual.values()] == [*alone.values()]


@pytest.mark.slow
def test_python_gives_what_the_sweep_gives(sweep, tmp_path, make_method):
    from tta_apm_baselines.shot import Shot

    sweep(["shot EPOCHS 2"], "sweep")
    method = make_method("shot", epochs=2, batch_size=64, seed=1)
    assert isinstance(method, Shot)
    cells, images = evaluate(method, load_dataset("digits_c"), corruptions=["fog", "contrast"],
                             num_images=12, batch_size=5, seed=1)
    for path in find_records(tmp_path / "sweep/cells"):
        record = load_record(path)
        ours = images[images.corruption == record.corruption]
        predictions = load_predictions(path, record)
        assert np.array_equal(ours.prediction, predictions.prediction)
        assert np.array_equal(ours.confidence, predictions.confidence)
        assert cells.set_index("corruption").did[record.corruption] == record.did


@pytest.mark.slow
def test_a_record_tells_the_work_on_the_domain(sweep, tmp_path):
    sweep(["shot EPOCHS 2 BATCH_SIZE 4", "source"], "work")
    by_row = {record.method: record for record in records(tmp_path / "work")}
    shot = by_row["shot"]
    assert (shot.scope, shot.survives, shot.gflops_per_image) == ("domain", "nothing", None)
    # An image that finds the head; two epochs, each a pass for labels and one that trains; then
    # the predictions.
    assert shot.did == {"updated": 12, "forwards": 1 + 4 * 12 + 12, "backwards": 24, "resets": 0}
    assert shot.identity["settings"]["streams"] == [[f"{shot.corruption}-5"]]
    assert by_row["source"].gflops_per_image is not None


@pytest.mark.slow
def test_online_rows_do_not_wait_for_offline_ones(sweep, tmp_path):
    sweep(ROWS, "order")
    times = {path: path.stat().st_mtime_ns for path in find_records(tmp_path / "order/cells")}
    ordered = [load_record(path).row for path in sorted(times, key=times.__getitem__)]
    assert ordered[:2] == ["source", "source"]
    assert sorted(ordered[2:]) == ["shot EPOCHS 1"] * 2 + ["shot EPOCHS 2"] * 2


@pytest.mark.slow
def test_a_domain_is_one_unit_of_work(sweep, tmp_path, capsys):
    code, whole = sweep(["shot EPOCHS 1"], "units")
    lost, = [path for path in find_records(tmp_path / "units/cells") if "contrast" in str(path)]
    lost.unlink()
    capsys.readouterr()
    assert sweep(["shot EPOCHS 1"], "units") == (cli.OK, whole)
    assert "1 of 2 cells to run" in capsys.readouterr().out


@pytest.mark.slow
def test_one_that_fails_or_trespasses_as_it_prepares_fails_alone(sweep, tmp_path, capsys):
    code, _ = sweep(["greedy", "shot EPOCHS 1", "failing"], "faults", PLUGINS=[str(STRANGERS)])
    assert code != cli.OK
    assert {record.method for record in records(tmp_path / "faults")} == {"shot"}
    printed = capsys.readouterr()
    told = printed.out + printed.err
    assert "changed what is not its own: torch's default dtype" in told
    assert "cannot learn from 12 images" in told
    assert torch.get_default_dtype() == torch.float32


# In tables

def test_a_table_says_that_a_row_is_offline_and_never_ranks_it(write_cell, tmp_path):
    from tta_apm.report.write import make_tables

    write_cell("source", "fog", 5)
    write_cell("tent", "fog", 6, scope="stream")
    write_cell("shot", "fog", 9, scope="domain")
    make_tables(tmp_path).write(tmp_path)
    text = (tmp_path / "table.md").read_text()
    line, = [line for line in text.splitlines() if "shot (offline)" in line and "|" in line]
    assert "**" not in line and "10.0" in line
    assert text.count("**40.0**") == 2  # the best online row, and its mean
    assert "it sees all images of a domain, without labels, before it predicts any" in text


def test_a_table_of_offline_rows_alone_has_no_best(write_cell, tmp_path):
    from tta_apm.report.build import build_tables
    from tta_apm.report.results import load_rows

    for row in ("shot", "uda_ss"):
        write_cell(row, "fog", 9, scope="domain")
    table, = build_tables(load_rows(tmp_path))
    assert not table.best and len(table.notes) >= 2


@pytest.mark.slow
def test_cost_leaves_an_offline_row_out_and_says_why(capsys):
    assert cli.main(["cost", "--cfg", "cfgs/digits_c/source.yaml", "METHODS", "[source,shot]"]) == 0
    printed = capsys.readouterr()
    assert "shot is left out: it is offline" in printed.err
    assert "source" in printed.out
