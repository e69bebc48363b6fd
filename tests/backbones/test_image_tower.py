"""A CLIP's image tower as a classifier, and the rows that run on it."""

from __future__ import annotations

import copy
import json
import re

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from small_methods import SMALL
from tta_apm import cli, config, load_method
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.image_tower import as_classifier, suited
from tta_apm.bench.identity import files_of
from tta_apm.bench.records import find_records, load_predictions, load_record
from tta_apm.cost.methods import Costs
from tta_apm.data.digits import CLASS_NAMES
from tta_apm.errors import UserError
from tta_apm.toolbox.norm_layers import norm_layers, without_last_stage


@pytest.fixture(scope="module")
def vit_clip():
    """A small CLIP with a vision transformer of four blocks, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(
            16, dict(image_size=32, patch_size=8, width=24, layers=4, head_width=12),
            dict(context_length=8, vocab_size=10, width=16, heads=2, layers=1))
        text = F.normalize(torch.randn(10, 16), dim=-1)
    return ClipBackbone(model, open_clip.get_tokenizer("ViT-B-32"), text_features=text,
                        logit_scale=30.0, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3,
                        name="small", weights="random").double()


@pytest.mark.parametrize("name", ["digits_clip", "vit_clip"])
def test_its_logits_are_the_zero_shot_ones(name, images, request):
    clip = request.getfixturevalue(name)
    images = images.to(clip.text_features.dtype)
    classifier = as_classifier(clip)
    assert torch.allclose(classifier(images), clip(images), atol=1e-4)
    assert (classifier.name, classifier.weights) == (clip.name, clip.weights)


def test_it_is_the_clip_s_own_tower_without_the_text_tower(vit_clip):
    inside = {parameter.data_ptr() for parameter in as_classifier(vit_clip).parameters()}
    tower = {parameter.data_ptr() for parameter in vit_clip.model.visual.parameters()}
    assert tower < inside and len(inside) == len(tower) + 1  # the head


def test_no_random_numbers_are_drawn(vit_clip):
    before = torch.get_rng_state()
    as_classifier(vit_clip)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_a_method_that_needs_a_classifier_is_given_it(vit_clip, digits_resnet):
    assert suited(vit_clip, "clip") is vit_clip
    assert suited(digits_resnet, "classifier") is digits_resnet
    assert suited(vit_clip, "classifier").kind == "classifier"


def test_the_last_blocks_of_the_tower_are_the_end_of_the_network(vit_clip):
    classifier = as_classifier(vit_clip)
    by_id = {id(module): name for name, module in classifier.named_modules()}
    kept, every = ([by_id[id(layer)].removeprefix("net.tower.visual.") for layer in choose(
        classifier)] for choose in (without_last_stage, norm_layers))
    assert every[:len(kept)] == kept
    assert every[len(kept):] == ["transformer.resblocks.3.ln_1", "transformer.resblocks.3.ln_2",
                                 "ln_post"]


@pytest.mark.slow
def test_tent_on_a_clip_does_what_a_plain_one_does(vit_clip, images):
    batches = images[:60].double().split(20)
    method = load_method("tent", vit_clip, lr=1e-2)
    result = torch.cat([method(batch) for batch in batches])
    clip = copy.deepcopy(vit_clip)
    params = [p for m in clip.model.visual.modules() if isinstance(m, nn.LayerNorm)
              for p in m.parameters()]
    for p in params:
        p.requires_grad_(True)
    adam, expected = torch.optim.Adam(params, lr=1e-2), []
    for batch in batches:
        logits = 30 * F.normalize(clip.encode_image(batch), dim=1) @ vit_clip.text_features.T
        expected.append(logits.detach())
        entropies = [-(p * p.log()).sum() for p in logits.softmax(1)]
        adam.zero_grad()
        (sum(entropies) / len(entropies)).backward()
        adam.step()
    expected = torch.cat(expected)
    assert (expected - vit_clip(images[:60].double())).abs().max() > 0.1
    assert torch.allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "tent", "eata", "sar", "deyo", "cotta", "roid", "rotta", "note", "adacontrast", "lame", "t3a",
    "memo", "source"])
def test_methods_of_classifiers_run_on_it_and_leave_it_as_it_was(name, vit_clip, images):
    keywords = {**SMALL.get(name, {}), **({"fisher_alpha": 0.0} if name == "eata" else {})}
    clip = copy.deepcopy(vit_clip).float()
    before = copy.deepcopy(clip.state_dict())
    method = load_method(name, clip, **keywords)
    logits = torch.cat([method(batch) for batch in images[:8].split(4)])
    assert logits.shape == (8, 10) and torch.isfinite(logits).all()
    after = clip.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


# Rows

@pytest.fixture
def rows(tmp_path):
    """A config with these METHODS, and its rows."""
    def rows(*methods: str):
        file = tmp_path / "rows.yaml"
        file.write_text(json.dumps({"METHODS": methods}))
        cfg = config.load(file)
        return cfg, config.rows(cfg)
    return rows


def test_a_word_of_the_row_chooses_the_backbone(rows):
    cfg, (plain, on_clip, other) = rows("tent", "tent BACKBONE clip", "tent LR 0.1 BACKBONE clip")
    assert (plain.needs, on_clip.needs, other.needs) == ("classifier", "clip", "clip")
    assert plain.hyper_parameters == on_clip.hyper_parameters
    assert other.hyper_parameters["lr"] == 0.1
    assert "CLIP.WEIGHTS" in files_of(cfg, on_clip) and "CLIP.WEIGHTS" not in files_of(cfg, plain)


@pytest.mark.parametrize("methods, message", [
    (["tent BACKBONE mae"], "unknown BACKBONE 'mae'"),
    (["tpt BACKBONE clip"], "tpt runs on one kind of backbone, 'clip': leave BACKBONE out"),
    (["apm BACKBONE rotation"], "unknown BACKBONE 'rotation'"),
    (["apm", "apm BACKBONE clip"], "are the same row"),
    (["tent", "tent BACKBONE classifier"], "are the same row")])
def test_what_a_row_cannot_run_on_is_told(rows, methods, message):
    with pytest.raises(UserError, match=message):
        rows(*methods)


@pytest.mark.slow
def test_in_a_sweep_the_source_on_a_clip_is_zero_shot_clip(tmp_path):
    methods = ["clip_zero_shot", "source BACKBONE clip", "t3a BACKBONE clip", "source"]
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({"METHODS": methods, "CORRUPTIONS": ["fog"], "NUM_IMAGES": 32,
                                "BATCH_SIZE": 16, "OUTPUT_DIR": str(tmp_path)}))
    assert cli.main(["--cfg", str(file)]) == 0
    records = {load_record(path).row: (path, load_record(path))
               for path in find_records(tmp_path / "cells")}
    assert {row: record.backbone for row, (_, record) in records.items()} == {
        **dict.fromkeys(methods[:3], "digits_clip"), "source": "timm/digits_resnet"}
    zero_shot, source = (load_predictions(*records[row]) for row in methods[:2])
    assert (zero_shot.prediction == source.prediction).all()
    table = (tmp_path / "table.md").read_text()
    assert re.search(r"\| t3a BACKBONE clip +\| digits_clip +\|", table)


@pytest.mark.slow
def test_its_cost_is_measured_on_the_clip(rows):
    cfg, (on_clip, plain) = rows("lame BACKBONE clip", "lame")
    costs = Costs(cfg, CLASS_NAMES, torch.device("cpu"))
    assert [costs.measure(row, 4).backbone for row in (on_clip, plain)] == [
        "digits_clip", "timm/digits_resnet"]
