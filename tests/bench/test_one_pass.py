"""One pass: rows side by side give what they give alone, and do what they share once."""

from __future__ import annotations

import pytest
import torch
import yaml
from sweeps import STRANGERS, cells

from small_methods import NAMES, SMALL
from tta_apm import cli
from tta_apm.bench import together
from tta_apm.bench.isolation import Guard
from tta_apm.bench.one_pass import OnePass
from tta_apm.bench.records import Record, load_record
from tta_apm.bench.run import Run
from tta_apm.bench.shared_work import SharedWork
from tta_apm.bench.together import Room, slow_rows
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import Domain
from tta_apm.data.digits import digits_c
from tta_apm.data.streams import Stream
from tta_apm.registry import METHODS

pytestmark = pytest.mark.slow  # sweeps, processes or training


@pytest.fixture
def sweep(tmp_path, capsys):
    """Run rows on 12 digits in batches of 4; gives exit code, predictions by cell, records."""
    def sweep(rows, folder, *overrides):
        config = tmp_path / f"{folder}.yaml"
        sections = {name.upper(): {key.upper(): list(value) if isinstance(value, tuple) else value
                                   for key, value in keywords.items()}
                    for name, keywords in SMALL.items() if name in rows}
        config.write_text(yaml.safe_dump({
            "METHODS": rows, "PLUGINS": [str(STRANGERS)], "CORRUPTIONS": ["fog", "contrast"],
            "NUM_IMAGES": 12, "BATCH_SIZE": 4, "SEEDS": [1],
            "OUTPUT_DIR": str(tmp_path / folder), **sections}))
        code = cli.main(["--cfg", str(config), *overrides])
        return code, cells(tmp_path / folder), capsys.readouterr()
    return sweep


def records(folder) -> dict[str, Record]:
    """By row and domain."""
    found = [load_record(file) for file in folder.rglob("cells/**/*.json")]
    return {f"{record.row} {record.corruption}": record for record in found}


class Unwatched:
    def update(self, images, correct):
        pass


def test_every_method_gives_the_same_alone_together_and_in_any_order(make_method, backbones):
    data = digits_c(data_dir="", frost_dir=None)
    stream = Stream(data, [Domain("digits_c", "fog", 5)], num_images=8, batch_size=4, seed=1)

    def run(name):
        backbone = backbones[METHODS.signature(name).needs]
        return Run(make_method(name), Guard(1, backbone), torch.device("cpu"), carries_state=False)

    def content(evaluations):
        (evaluation,) = evaluations.values()
        return evaluation.predictions.to_bytes(), evaluation.did

    alone = {name: content(run(name).evaluate(stream)) for name in NAMES}
    runs = {name: run(name) for name in NAMES}
    for names in (NAMES, NAMES[::-1]):
        beside = [runs[name] for name in names]
        shared = SharedWork(list(backbones.values()), torch.device("cpu"))
        found = OnePass(beside, stream, torch.device("cpu"), shared, Unwatched(),
                        may_split=False).run()
        assert {name: content(found[runs[name]].evaluations) for name in NAMES} == alone


def test_a_batch_is_fetched_once_for_all_rows(sweep, monkeypatch):
    fetched, images = [], Corrupted.images
    monkeypatch.setattr(Corrupted, "images", lambda self, domain, indices: (
        fetched.append(len(indices)), images(self, domain, indices))[1])
    rows = ["source", "norm", "tent"]
    for number, passes in (("auto", 1), ("2", 2), ("1", 3)):
        fetched.clear()
        code, _, _ = sweep(rows, f"by_{number}", "TOGETHER", number)
        assert code == cli.OK
        assert fetched == [4] * 6 * passes


def test_only_what_is_missing_is_fetched_and_run(sweep, tmp_path, monkeypatch):
    rows = ["source", "tent"]
    _, whole, _ = sweep(rows, "some", "SETTING", "continual")
    for file in [*(tmp_path / "some").rglob("tent/contrast*"),
                 *(tmp_path / "some").rglob("source/fog*")]:
        file.unlink()
    times = {name: (tmp_path / "some" / name).stat().st_mtime_ns
             for name in cells(tmp_path / "some")}
    fetched, images = [], Corrupted.images
    monkeypatch.setattr(Corrupted, "images", lambda self, domain, indices: (
        fetched.append(domain.corruption), images(self, domain, indices))[1])
    code, again, printed = sweep(rows, "some", "SETTING", "continual")
    assert code == cli.OK and again == whole and "2 of 4 cells to run" in printed.out
    assert fetched == ["fog"] * 3 + ["contrast"] * 3
    assert all((tmp_path / "some" / name).stat().st_mtime_ns == time
               for name, time in times.items())


def test_rows_ask_a_clip_once_for_each_batch(sweep, monkeypatch):
    import open_clip
    asked, encode = [], open_clip.CLIP.encode_image
    monkeypatch.setattr(open_clip.CLIP, "encode_image", lambda self, images: (
        asked.append(len(images)), encode(self, images))[1])
    rows = ["clip_zero_shot", "coop", "cocoop", "apm"]
    code, shared, _ = sweep(rows, "shared")
    assert code == cli.OK
    assert asked == [1] * 4 + [4] * 6  # each row is warmed up on one image
    asked.clear()
    code, alone, _ = sweep(rows, "alone", "TOGETHER", "1")
    assert sorted(asked) == [1] * 4 + [4] * 6 * 4
    assert alone == shared


def test_rows_ask_a_classifier_once_for_its_features(sweep, monkeypatch, digits_resnet):
    network = type(digits_resnet.net)
    asked, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda self, images: (
        asked.append(len(images)), forward(self, images))[1])
    rows = ["t3a", "lame", "one_sample BACKBONE classifier NET mlp HIDDEN [48] STEPS 2",
            "apm BACKBONE classifier HIDDEN [16] STEPS 2 IMAGE_SIZE 32 PATCH 8 CODE 16"]
    code, shared, _ = sweep(rows, "shared")
    assert code == cli.OK
    # Besides: each row is warmed up, two of them on a whole batch.
    assert asked.count(4) == 2 + 6
    asked.clear()
    code, alone, _ = sweep(rows, "alone", "TOGETHER", "1")
    assert asked.count(4) == 2 + 6 * 4
    assert alone == shared


def test_rows_with_the_same_views_ask_a_clip_once_for_their_features(sweep, monkeypatch):
    import open_clip
    asked, encode = [], open_clip.CLIP.encode_image
    monkeypatch.setattr(open_clip.CLIP, "encode_image", lambda self, images: (
        asked.append(len(images)), encode(self, images))[1])
    rows = ["tpt NUM_VIEWS 10", "tpt NUM_VIEWS 10 STEPS 2", "tpt NUM_VIEWS 10 FLIP false"]
    code, shared, _ = sweep(rows, "shared")
    assert code == cli.OK
    # Nine views of each of 24 images, with and without flips; and of one in each row's warm-up.
    assert asked.count(9) == 3 + 24 * 2 and asked.count(4) == 6
    asked.clear()
    code, alone, _ = sweep(rows, "alone", "TOGETHER", "1")
    assert asked.count(9) == 3 + 24 * 3 and asked.count(4) == 6 * 3
    assert alone == shared and len(shared) == 6


def test_shared_work_is_charged_to_every_row_as_if_it_were_alone(sweep, tmp_path):
    """A network that takes 50 ms for a batch, whatever the machine is busy with."""
    model = ("CLASSIFIER.MODEL", f"{STRANGERS}:slow", "CLASSIFIER.WEIGHTS", "", "CLASSIFIER.MEAN",
             "[0,0,0]", "CLASSIFIER.STD", "[1,1,1]")
    code, _, _ = sweep(["source", "plain", "sleepy"], "shared", *model)
    assert code == cli.OK
    import sys
    net = next(module.Slow for name, module in sys.modules.items()
               if getattr(module, "Slow", None) and "strangers" in str(module.__file__))
    assert net.calls <= 3 + 6  # each row's warm-up, and once for each batch
    seconds = {name: record.seconds for name, record in records(tmp_path / "shared").items()}
    assert seconds["source fog"] == pytest.approx(3 * 0.05, rel=0.5)
    assert seconds["plain fog"] == pytest.approx(3 * 0.05, rel=0.5)
    assert seconds["sleepy fog"] == pytest.approx(3 * 0.35, rel=0.5)


def test_who_changes_the_backbone_late_and_unseen_fails_alone(sweep):
    """Through `.data`, which torch does not count, in the last batch of the first stream."""
    _, alone, _ = sweep(["plain", "tent", "clip_zero_shot"], "alone", "TOGETHER", "1")
    code, found, printed = sweep(["plain", "late_spoiler", "tent", "clip_zero_shot"], "together")
    assert code == cli.FAILED_CELLS and found == alone
    assert printed.out.count("FAILED: changed what is not its own: the shared backbone (") == 2
    assert "2 of 8 cells FAILED" in printed.err


def test_one_that_finds_too_little_memory_beside_others_is_tried_alone(sweep):
    code, found, _ = sweep(["broke", "plain"], "together")
    assert code == cli.OK and len(found) == 4
    assert found[next(name for name in found if "broke/fog" in name)] == found[next(
        name for name in found if "plain/fog" in name)]


def test_what_a_method_attaches_to_its_images_does_not_reach_the_next(sweep):
    _, alone, _ = sweep(["tent", "plain"], "alone", "TOGETHER", "1")
    code, found, _ = sweep(["grasping", "tent", "plain"], "together")
    assert code == cli.OK
    assert {name: found[name] for name in alone} == alone


def test_quick_rows_are_recorded_before_slow_ones_where_those_take_long(sweep, tmp_path,
                                                                        monkeypatch):
    monkeypatch.setattr(together, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(together, "SIMILAR", 1.5)
    code, found, _ = sweep(["sleepy", "source", "plain"], "parted")
    assert code == cli.OK and len(found) == 6
    times = {name: (tmp_path / "parted" / name).stat().st_mtime_ns for name in found}
    slow = [time for name, time in times.items() if "sleepy" in name]
    assert max(time for name, time in times.items() if "sleepy" not in name) < min(slow)
    assert {found[name] for name in found if "sleepy" in name} == {
        found[name] for name in found if "plain" in name}


def test_slow_rows_part_only_where_a_domain_takes_long():
    seconds = [100.0, 1.0, 2.0, 0.5, 90.0]
    assert slow_rows(0.5, seconds, num_batches=2) == set()
    assert slow_rows(0.5, seconds, num_batches=50) == {0, 4}
    assert slow_rows(20.0, seconds, num_batches=50) == set()  # images cost more than that
    assert slow_rows(0.0, [5.0], num_batches=1e6) == set()


def test_room_is_a_number_of_rows_or_a_share_of_the_memory():
    assert Room("2", free_mb=1).fits([50, 50]) and not Room("2", free_mb=1e9).fits([1, 1, 1])
    assert Room("auto", free_mb=1000).fits([100, 90])
    assert not Room("auto", free_mb=1000).fits([100, 110])
    assert Room("auto", free_mb=1000).fits([900])  # a single row runs in any case


def test_what_others_hold_is_in_no_ones_peak(sweep, tmp_path):
    sweep(["plain"], "alone")
    sweep(["heavy", "plain"], "together")
    alone = records(tmp_path / "alone")["plain fog"].peak_memory_mb
    beside = records(tmp_path / "together")
    if not alone:
        pytest.skip("the system does not tell a process's memory")
    assert beside["plain fog"].peak_memory_mb < alone + 100
    assert beside["heavy fog"].peak_memory_mb > beside["plain fog"].peak_memory_mb + 150


def test_how_many_run_together_is_no_part_of_a_cell(sweep):
    _, before, _ = sweep(["source", "plain"], "cells", "TOGETHER", "1", "NUM_WORKERS", "1")
    code, after, printed = sweep(["source", "plain"], "cells", "TOGETHER", "2", "NUM_WORKERS", "3")
    assert code == cli.OK and after == before and "cells to run" not in printed.out


@pytest.mark.parametrize("key", ["TOGETHER", "NUM_WORKERS"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_other_numbers_are_one_sentence(sweep, key, value):
    code, _, printed = sweep(["source"], "bad", key, value)
    assert code == cli.BAD_INPUT
    assert printed.err.count("\n") == 1 and f"{key} {value}" in printed.err
