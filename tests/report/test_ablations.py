"""The ablations: networks in the place of the student, and the paper's rows beside ours."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tta_apm_baselines.one_sample import MEAN, STD, OneSample, build

from places import ROOT
from tta_apm import Classifier, cli, config
from tta_apm.apm.student import Student
from tta_apm.errors import UserError
from tta_apm.report.ablations import PUBLISHED, Paper, paper_rows
from tta_apm.toolbox.episodes import stack

CONFIGS = ROOT / "configs/ablations"
NAMES = sorted(file.stem for file in CONFIGS.glob("*.yaml") if file.stem != "base")


@pytest.fixture(scope="module")
def images(digits_test):
    return digits_test[0][:2]


def prepared(method: OneSample, images: Tensor) -> Tensor:
    size = (method.image_size, method.image_size)
    mean, std = (torch.tensor(values).to(images).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (F.interpolate(images, size=size, mode="bilinear", antialias=True) - mean) / std


@pytest.mark.parametrize("kind", ["clip", "classifier"])
def test_one_sample_equals_a_plain_loop_over_images(backbones, kind, images):
    teacher = copy.deepcopy(backbones[kind]).double()
    images = images.double()
    if kind == "clip":
        targets, classify = teacher.encode_image(images), teacher.classify
    else:
        targets = teacher.net.forward_head(
            teacher.net.forward_features(teacher.prepare(images)), pre_logits=True)
        head = teacher.net.get_classifier()

        def classify(features):
            return head(F.normalize(features) * targets.norm(dim=1, keepdim=True))
    method = OneSample(teacher, net="mlp", hidden=(40, 24), image_size=24, steps=4, lr=1e-3)
    expected = []
    for image, target in zip(prepared(method, images).split(1), targets):
        net = copy.deepcopy(method.net).requires_grad_()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            F.mse_loss(net(image)[0], target).backward()
            optimizer.step()
        expected.append(net(image).detach())
    method.chunk = 2
    assert (method(images) - classify(torch.cat(expected))).abs().max() < 1e-6
    assert torch.equal(method.details["teacher_prediction"], teacher(images).argmax(-1))


@pytest.mark.slow
def test_a_resnet_of_one_image_has_the_gradients_that_it_has_alone(digits_clip, images):
    """Batch normalisation does not join the images that are adapted together."""
    method = OneSample(digits_clip, net="resnet18", image_size=40)
    images = prepared(method, images)
    weights = stack(method.initial, 2)
    outputs = method.run(weights, images[:, None])
    outputs.square().sum().backward()
    assert (outputs[0] - outputs[1]).abs().max() > 0.1
    for b, image in enumerate(images):
        method.net.zero_grad()
        expected = method.net(image[None])
        expected.square().sum().backward()
        assert torch.allclose(outputs[b], expected[0], atol=1e-4)
        for name, parameter in method.net.named_parameters():
            error = (weights[name].grad[b] - parameter.grad).norm()
            assert error < 1e-3 * parameter.grad.norm(), name


@pytest.mark.slow
def test_one_sample_fits_its_teacher(digits_clip, images):
    method = OneSample(digits_clip, net="mlp", hidden=(256,), lr=1e-3, steps=40)
    logits = method(images)
    assert (method.details["cosine"] > 0.95).all()
    assert (logits.argmax(-1) == method.details["teacher_prediction"]).all()
    assert (OneSample(digits_clip, net="mlp", hidden=(256,), steps=0)(images)
            - logits).abs().max() > 1


def test_one_sample_draws_by_its_seed_and_leaves_the_global_one(digits_clip, images):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    keywords = dict(net="mlp", hidden=(24,), steps=1)
    first = OneSample(digits_clip, **keywords, seed=1)(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(OneSample(digits_clip, **keywords, seed=1)(images), first)
    assert not torch.equal(OneSample(digits_clip, **keywords, seed=2)(images), first)


def test_a_teacher_without_a_linear_head_is_told():
    net = nn.Sequential(nn.Conv2d(3, 10, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = Classifier(net, mean=MEAN, std=STD)
    with pytest.raises(UserError, match="^one_sample: the logits of the classifier Sequential are "
                                        "not the output of a linear layer"):
        OneSample(teacher, net="mlp", hidden=(24,))


@pytest.mark.parametrize("net, millions", [("mlp", 21.3), ("resnet18", 11.6), ("resnet34", 21.7)])
def test_sizes_of_the_networks(net, millions):
    with torch.device("meta"):
        made = build(net, 32, (4096, 1792), 768)
    assert round(sum(p.numel() for p in made.parameters()) / 1e6, 1) == millions
    assert not list(made.buffers())  # no statistics that would outlive an image


@pytest.mark.parametrize("keywords, message", [
    ({"net": "resnet19"}, "did you mean 'resnet18'"),
    ({"image_size": 32}, "must be at least 33 for resnet18"),
    ({"net": "mlp", "hidden": ()}, "hidden"),
    ({"net": "mlp", "steps": -1}, "steps -1"),
])
def test_bad_values_are_told(digits_clip, keywords, message):
    with pytest.raises(UserError, match=message):
        OneSample(digits_clip, **keywords)


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_valid_and_name_a_row_of_the_paper_for_each_of_ours(name):
    cfg = config.load(CONFIGS / f"{name}.yaml")
    rows = paper_rows(Paper(cfg.PAPER.TABLE, cfg.PAPER.ROWS, cfg.METHODS))
    assert all(rows) and len(config.rows(cfg)) == len(rows)
    assert cfg.METRIC == "accuracy" and cfg.OUTPUT_DIR == f"results/ablations/{name}"


def test_all_tables_are_used_whole():
    """No row of a table is left without a config that runs it."""
    used: dict[str, set[str]] = {}
    for name in NAMES:
        cfg = config.load(CONFIGS / f"{name}.yaml")
        used.setdefault(cfg.PAPER.TABLE, set()).update(cfg.PAPER.ROWS)
    for file in PUBLISHED.glob("*.csv"):
        rows = [line.split(",")[0] for line in file.read_text().splitlines()[1:]]
        assert used[file.stem] == set(rows), file


def test_the_ladder_in_the_papers_size_has_the_papers_sizes():
    """What base.yaml says of Table 9: our widths are an eighth of those."""
    cfg = config.load(CONFIGS / "width.yaml")
    millions = []
    for row in config.rows(cfg):
        parameters = row.hyper_parameters
        with torch.device("meta"):
            student = Student(grid=32, patch=14, kernels=1, code=1024, feature_dim=768,
                              hidden=[8 * width for width in parameters["hidden"]],
                              pooling=parameters["pooling"] or "mean",
                              rgb=parameters["pooling"] == "attention")
        millions.append(sum(p.numel() for p in student.parameters()) / 1e6)
    paper = [7, 23, 36, 53, 70, 87, 104, 120]  # slim: 25 with D = 1024
    assert [abs(a - b) < 0.6 for a, b in zip(millions, paper)] == [True] * 8


@pytest.mark.slow
def test_a_run_prints_the_papers_rows_beside_ours(tmp_path, capsys):
    command = ["--cfg", str(CONFIGS / "steps.yaml"), "METHODS",
               "[apm STEPS 10, apm  STEPS 0, clip_zero_shot]", "PAPER.ROWS", "['10 steps','','']",
               "CORRUPTIONS", "[fog]", "NUM_IMAGES", "4", "SEEDS", "[0,7]", "APM.HIDDEN", "[16]",
               "OUTPUT_DIR", str(tmp_path), "DEVICE", "cpu"]
    assert cli.main(command) == cli.OK
    printed = capsys.readouterr().out
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert "digits_c, severity 5, and table 8 of Modi and Rawat" in lines[0]
    assert all(line in printed for line in lines)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines
            if line.startswith("|")]
    head, _, ten, none, zero_shot = rows
    assert head[0] == "ours" and head[-2:] == ["table 8", "there, dtd"]
    assert ten[0] == "apm STEPS 10" and ten[-2:] == ["10 steps", "44.2 ± 0.6"]
    assert "±" in ten[1] and ten[2] != "–"
    assert none[0] == "apm STEPS 0" and none[-2:] == ["", "–"]
    assert zero_shot[0] == "clip_zero_shot" and zero_shot[1].split()[0] == ten[2]
    assert cli.main(["table", str(tmp_path)]) == cli.OK
    assert "44.2 ± 0.6" in capsys.readouterr().out


@pytest.mark.parametrize("overrides, message", [
    (["PAPER.TABLE", "table_7"], "unknown 'table_7'"),
    (["METHODS", "[apm]"], "names 6 rows of table_8, METHODS has 1"),
    (["METHODS", "[apm]", "PAPER.ROWS", "[10 stps]"], "did you mean '10 steps'"),
])
def test_a_wrong_row_is_told_before_anything_runs(tmp_path, capsys, overrides, message):
    command = ["--cfg", str(CONFIGS / "steps.yaml"), *overrides, "OUTPUT_DIR", str(tmp_path / "no")]
    assert cli.main(command) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
