"""Counts: a record tells what a method did, alone and in company, and pays nothing for it."""

from __future__ import annotations

import copy
import csv
import json

import pytest
import torch
from torch import nn

from small_methods import SMALL
from tta_apm import cli
from tta_apm.backbones.classifiers import Classifier
from tta_apm.bench.counts import COUNTED, Counts
from tta_apm.bench.isolation import Guard, MethodError
from tta_apm.bench.records import load_record
from tta_apm.bench.run import Run
from tta_apm.bench.shared_work import SharedWork
from tta_apm.data.dataset import Domain
from tta_apm.data.digits import digits_c
from tta_apm.data.streams import Stream
from tta_apm.method import Method

CPU = torch.device("cpu")
FOG, BLUR = Domain("digits_c", "fog", 5), Domain("digits_c", "defocus_blur", 5)


def stream(*domains, num_images=24, batch_size=8):
    dataset = digits_c(data_dir="", frost_dir=None)
    return Stream(dataset, domains or [FOG], num_images=num_images, batch_size=batch_size, seed=0)


def did(method, stream_=None):
    """What a method did to 24 images, per image."""
    stream_ = stream_ or stream()
    run = Run(method, Guard(0), CPU, carries_state=False)
    [evaluation] = run.evaluate(stream_).values()
    return {name: count / len(stream_) for name, count in evaluation.did.items()}


class Plain(Method):
    """Asks its backbone, does what it is told beside, and tells of it."""

    needs, scope = "classifier", "stream"

    def __init__(self, backbone, beside=lambda method, images: None):
        super().__init__()
        self.backbone = backbone
        self.beside = beside

    def forward(self, images):
        self.beside(self, images)
        return self.backbone(images)

    def reset(self):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name, updated, forwards, backwards", [
    ("source", 0, 1, 0), ("norm", 0, 1, 0), ("lame", 0, 1, 0), ("t3a", 0, 1, 0),
    ("clip_zero_shot", 0, 1, 0), ("tent", 1, 1, 1), ("rmt", 1, 4, 3),
    # Two views and the image, two views through the momentum copy.
    ("adacontrast", 1, 5, 1),
    # One view and the image; a step on the views.
    ("memo", 1, SMALL["memo"]["num_views"] + 1, SMALL["memo"]["num_views"]),
    ("ttt", 1, SMALL["ttt"]["steps"] * SMALL["ttt"]["num_views"] + 1,
     SMALL["ttt"]["steps"] * SMALL["ttt"]["num_views"]),
    ("ttt_mae", 1, SMALL["ttt_mae"]["steps"] * SMALL["ttt_mae"]["masks"] + 1,
     SMALL["ttt_mae"]["steps"] * SMALL["ttt_mae"]["masks"]),
    ("mttt", 1, 1, 0),  # the inner loop takes its steps within the forward
    # The gradient goes through the text tower, or through a student of its own.
    ("tpt", 1, SMALL["tpt"]["num_views"], 0), ("apm", 1, 1, 0)])
def test_passes_are_counted_at_any_backbone(name, updated, forwards, backwards, make_method):
    found = did(make_method(name))
    assert found == {"updated": updated, "forwards": forwards, "backwards": backwards, "resets": 0}


@pytest.mark.slow
def test_methods_tell_what_they_chose(make_method):
    """EATA's claim: fewer images are learnt from than TENT's."""
    tent, eata = did(make_method("tent")), did(make_method("eata"))
    assert 0 < eata["updated"] < tent["updated"] == 1
    none = did(make_method("eata", entropy_margin=1e-6))
    assert none == {"updated": 0, "forwards": 1, "backwards": 0, "resets": 0}
    deyo = did(make_method("deyo"))
    assert 0 < deyo["updated"] < 1 < deyo["forwards"] < 2  # those that pass the first filter
    roid = did(make_method("roid"))
    assert 0 < roid["updated"] < 1 and roid["forwards"] == roid["backwards"] == 1 + roid["updated"]
    # The memory of 8 images, whose teacher takes no gradient.
    rotta = did(make_method("rotta"))
    assert rotta == pytest.approx({"updated": rotta["updated"], "resets": 0,
                                   "forwards": 1 + 2 * rotta["updated"],
                                   "backwards": rotta["updated"]})
    assert 0.5 < rotta["updated"] <= 1
    assert did(make_method("note")) == {"updated": 1, "forwards": 2, "backwards": 1, "resets": 0}


@pytest.mark.slow
def test_sar_goes_twice_and_cotta_by_its_views(make_method):
    certain = did(make_method("sar", entropy_margin=10.0, recovery=0.0))
    assert certain == {"updated": 1, "forwards": 2, "backwards": 2, "resets": 0}
    views = did(make_method("cotta", confidence=1.0, num_views=3))
    assert views == {"updated": 1, "forwards": 5, "backwards": 1, "resets": 0}
    assert did(make_method("cotta", confidence=0.0))["forwards"] == 3


def test_starting_anew_is_told(make_method):
    assert did(make_method("sar", entropy_margin=10.0, recovery=10.0))["resets"] * 24 == 3
    assert did(make_method("eata", restore_every=2))["resets"] * 24 == 1
    assert did(make_method("tent", episodic=True))["resets"] * 24 == 3


@pytest.mark.slow
@pytest.mark.parametrize("row", ["tent BACKBONE clip", "memo BACKBONE clip"])
def test_an_image_tower_counts_as_any_network(row, make_method):
    views = SMALL["memo"]["num_views"] if row.startswith("memo") else 0
    assert did(make_method(row)) == {
        "updated": 1, "forwards": 1 + views, "backwards": views or 1, "resets": 0}


def learn(method, images):
    with torch.enable_grad():
        method.own(images.mean((2, 3))).sum().backward()
    method.optimizer.step()


def test_a_strangers_method_need_tell_nothing(digits_resnet):
    method = Plain(digits_resnet, learn)
    method.own = nn.Linear(3, 1)
    method.optimizer = torch.optim.SGD(method.own.parameters(), lr=0.1)
    assert did(method) == {"updated": 1, "forwards": 1, "backwards": 0, "resets": 0}


def test_what_is_told_counts_and_only_that_of_the_stream(digits_resnet):
    def tell(method, images):
        learn(method, images)
        method.did["updated"] += 2
        method.did["forwards"] += 5 * len(images)

    method = Plain(digits_resnet, tell)
    method.own = nn.Linear(3, 1)
    method.optimizer = torch.optim.SGD(method.own.parameters(), lr=0.1)
    for _ in range(2):  # what was told before counts no more
        assert did(method) == {"updated": 6 / 24, "forwards": 5, "backwards": 0, "resets": 0}


def test_a_gradient_without_the_backbone_goes_back_for_nobody(digits_resnet):
    def frozen(method, images):
        with torch.enable_grad():
            (method.backbone(images).mean() * method.own.weight.mean()).backward()

    method = Plain(digits_resnet, frozen)
    method.own = nn.Linear(3, 1)
    assert did(method) == {"updated": 0, "forwards": 2, "backwards": 0, "resets": 0}


@pytest.mark.parametrize("told, why", [
    (None, "of type NoneType instead of a dict"), ({"update": 1}, "'update', which is unknown"),
    ({"updated": 0.5}, "'updated' of 0.5"), ({"resets": -1}, "'resets' of -1"),
    ({"resets": True}, "'resets' of True")])
def test_other_words_are_an_error(told, why, digits_resnet):
    method = Plain(digits_resnet)
    method.did = told
    with pytest.raises(MethodError, match=why):
        did(method)


def test_a_count_that_falls_is_an_error(digits_resnet):
    def fall(method, images):
        method.did["resets"] -= 1

    method = Plain(digits_resnet, fall)
    method.did["resets"] = 9
    with pytest.raises(MethodError, match="'resets' that fell"):
        did(method)


def test_domains_of_one_stream_have_their_share(make_method):
    mixed = stream(FOG, BLUR)
    run = Run(make_method("tent"), Guard(0), CPU, carries_state=False)
    found = run.evaluate(mixed)
    assert [evaluation.did for evaluation in found.values()] == 2 * [
        {"updated": 24, "forwards": 24, "backwards": 24, "resets": 0}]
    assert found[FOG].followed_by(found[BLUR]).did["forwards"] == 48


def test_shared_work_counts_for_everyone(digits_resnet, monkeypatch):
    ran, select = [], Classifier.select_classes
    monkeypatch.setattr(Classifier, "select_classes", lambda self, logits: (
        ran.append(len(logits)), select(self, logits))[1])
    shared = SharedWork([digits_resnet], CPU)
    shared.begin(torch.rand(6, 3, 32, 32))
    for _ in range(3):
        counts = Counts()
        with torch.enable_grad(), shared.call(), counts.during_call(6):
            digits_resnet(shared.images)
            digits_resnet(shared.images[2:4])
            torch.ones(1, requires_grad=True).sum().backward()
        assert counts.share(1) == {"updated": 0, "forwards": 8, "backwards": 0, "resets": 0}
    assert ran == [6, 2]


def test_a_gradient_goes_back_no_further_than_its_call(digits_resnet):
    """EATA drops a batch; the next one's gradient is not the dropped one's."""
    own = copy.deepcopy(digits_resnet).requires_grad_(True)
    counts = Counts()
    for count, takes_gradient in ((8, False), (3, True)):
        with torch.enable_grad(), counts.during_call(count):
            loss = own(torch.rand(count, 3, 32, 32)).sum()
            if takes_gradient:
                loss.backward()
    assert counts.share(1) == {"updated": 0, "forwards": 11, "backwards": 3, "resets": 0}


def test_nothing_is_left_of_a_call_that_raises():
    kept = torch.autograd.backward, torch.autograd.grad
    counts = Counts()
    with pytest.raises(ValueError), counts.during_call(3):
        assert torch.autograd.grad is not kept[1]
        raise ValueError
    assert (torch.autograd.backward, torch.autograd.grad) == kept
    with torch.enable_grad():
        torch.ones(1, requires_grad=True).sum().backward()
    assert counts.share(1) == dict.fromkeys(COUNTED, 0)


@pytest.mark.slow
def test_a_sweep_records_it_and_the_csv_shows_it(tmp_path, capsys):
    options = ["--cfg", "cfgs/digits_c/source.yaml", "METHODS", "[source,tent,eata]", "CORRUPTIONS",
               "[fog,contrast]", "NUM_IMAGES", "24", "BATCH_SIZE", "8", "OUTPUT_DIR",
               str(tmp_path), "EATA.FISHER_ALPHA", "0", "EATA.DIVERSITY_MARGIN", "0.4"]
    assert cli.main(options) == cli.OK
    capsys.readouterr()
    paths = {load_record(path).row: path for path in tmp_path.glob("cells/**/fog*.json")}
    told = {row: load_record(path).did for row, path in paths.items()}
    assert told["source"] == {"updated": 0, "forwards": 24, "backwards": 0, "resets": 0}
    assert told["tent"] == {"updated": 24, "forwards": 24, "backwards": 24, "resets": 0}
    assert told["eata"]["updated"] < 24
    lines = csv_lines(tmp_path, capsys)
    assert [line["forwards_per_image"] for line in lines] == ["1.0"] * 3
    assert [line["backwards_per_image"] for line in lines][:2] == ["0.0", "1.0"]
    assert 0 < float(lines[2]["share_updated"]) < 1 and lines[2]["resets"] == "0.0"

    # One of before: it loads, and the row has no such figure.
    record = json.loads(paths["tent"].read_text())
    del record["did"]
    paths["tent"].write_text(json.dumps(record))
    assert load_record(paths["tent"]).did == {}
    assert [line["share_updated"] for line in csv_lines(tmp_path, capsys)][:2] == ["0.0", ""]
    assert cli.main(options) == cli.OK and "cells to run" not in capsys.readouterr().out


def csv_lines(folder, capsys):
    assert cli.main(["export", "csv", str(folder)]) == cli.OK
    head, *lines = csv.reader(capsys.readouterr().out.splitlines())
    return [dict(zip(head, line)) for line in lines]
