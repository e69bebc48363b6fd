"""FLOPs against counts by hand, the cost of methods, and `tta-apm cost`."""

from __future__ import annotations

import math

import open_clip
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

from tta_apm import cli, config
from tta_apm.apm.method import PRESETS, Apm
from tta_apm.apm.student import Student
from tta_apm.backbones.build import untrained
from tta_apm.bench import measure as stopwatch
from tta_apm.bench.measure import count_flops
from tta_apm.cost import paper as cost_references
from tta_apm.cost import table as cost_table
from tta_apm.cost.figure2 import PatchCost, draw_figure_2
from tta_apm.cost.methods import Costs, MethodCost
from tta_apm.errors import UserError
from tta_apm.method import Method
from tta_apm.registry import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    torch.__version__ < "2.3", reason="counts nothing before torch 2.3")]
CPU = torch.device("cpu")


def macs_of_block(tokens: int, width: int) -> int:
    """Multiply-adds of a Transformer block by hand: q, k, v and output, scores and mixture, MLP."""
    return 4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2


@pytest.fixture(scope="module")
def clip():
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config("ViT-B-16")).eval()


@pytest.fixture(scope="module")
def table_4():
    return cost_references.table_4()


def test_vit_b_16_by_hand(clip):
    by_hand = 196 * 768 * 768 + 12 * macs_of_block(197, 768) + 768 * 512
    image = torch.empty(1, 3, 224, 224, device="meta")
    with torch.no_grad():  # where torch would take its fast path for attention
        flops = count_flops(lambda: clip.encode_image(image))
    assert flops == (2 * by_hand, 0)
    assert by_hand / 1e9 == pytest.approx(17.56, abs=0.005)


def test_prompt_by_hand(clip):
    by_hand = 12 * macs_of_block(77, 512) + 512 * 512
    tokens = torch.zeros(1, 77, dtype=torch.long, device="meta")
    with torch.no_grad():
        flops = count_flops(lambda: clip.encode_text(tokens))
    assert flops == (2 * by_hand, 0)
    assert by_hand / 1e9 == pytest.approx(2.98, abs=0.005)


@pytest.mark.parametrize("preset, millions", [("slim", 19.7), ("paper", 53.2)])
def test_column_by_hand(preset, millions):
    hidden, pooling = PRESETS[preset]
    with torch.device("meta"):
        student = Student(grid=32, patch=14, kernels=1, code=1024, hidden=hidden, feature_dim=768,
                          pooling=pooling)
        column = torch.empty(1, 2048)
    widths = [2048, *hidden, 768]
    by_hand = sum(a * b for a, b in zip(widths, widths[1:]))
    flops = count_flops(lambda: student.columns(column).sum().backward())
    assert flops.forward == 2 * by_hand
    # Gradients of all weights, and of all inputs but the first.
    assert flops.backward == 2 * (2 * by_hand - 2048 * hidden[0])
    assert by_hand / 1e6 == pytest.approx(millions, abs=0.06)


def test_attention_in_its_fast_path_is_counted():
    """In eval mode without gradients torch fuses a whole layer into one call that has no count."""
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval()
    with torch.no_grad():
        flops = count_flops(lambda: layer(torch.zeros(1, 5, 16)))
    assert flops == (2 * macs_of_block(5, 16), 0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_fused_attention_is_counted():
    query = torch.zeros(2, 3, 7, 8, requires_grad=True)
    flops = count_flops(lambda: F.scaled_dot_product_attention(query, query, query).sum()
                        .backward())
    by_hand = 2 * 2 * 3 * 7 * 7 * 8
    assert flops == (2 * by_hand, 4 * by_hand)


def test_vmapped_convolution_is_counted_right_for_one_image():
    """What methods are counted on: one image. For B, torch counts the gradient B times too often.
    """
    layer = nn.Conv2d(3, 4, 3)
    image = torch.zeros(1, 1, 3, 8, 8)

    def gradients(batch: int):
        weights = {name: value.detach().expand(batch, *value.shape).clone().requires_grad_()
                   for name, value in layer.named_parameters()}
        return count_flops(lambda: vmap(lambda one, x: functional_call(layer, one, (x,)))(
            weights, image.expand(batch, -1, -1, -1, -1)).sum().backward())

    by_hand = 36 * 4 * 27  # positions, kernels, what a kernel sees
    assert gradients(1) == (2 * by_hand, 2 * by_hand)
    assert gradients(3).forward == 3 * 2 * by_hand


def test_both_ways_to_take_gradients_are_backward():
    before = torch.autograd.backward, torch.autograd.grad
    weight, inputs = torch.ones(3, 4, requires_grad=True), torch.ones(2, 3)
    for run in (lambda: (inputs @ weight).sum().backward(),
                lambda: torch.autograd.grad((inputs @ weight).sum(), weight)):
        assert count_flops(run) == (48, 48)
    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: 1 / 0)
    assert (torch.autograd.backward, torch.autograd.grad) == before


@pytest.fixture(scope="module")
def costs():
    cfg = config.load("cfgs/digits_c/all.yaml", ["TTT_MAE.MASKS", "2", "TTT_MAE.STEPS", "5",
                                                 "APM.STEPS", "7"])
    names = [str(digit) for digit in range(10)]
    made = Costs(cfg, names, CPU)
    rows = {row.text: row for row in config.rows(cfg)}
    return lambda name: made.measure(rows[name], 2), made, rows


@pytest.mark.parametrize("name", ["ttt_mae", "apm", "tent"])
def test_the_first_steps_tell_the_cost_of_all(costs, name):
    measure, made, rows = costs
    measured, method = measure(name), made.method(rows[name])
    images = made.images(made.backbone(rows[name].needs), 2)
    images = images[:1] if rows[name].scope == "image" else images
    with torch.no_grad():
        flops = count_flops(lambda: method(images))
    assert (measured.forward, measured.backward) == pytest.approx(
        (flops.forward / len(images), flops.backward / len(images)))
    assert measured.num_images == 2 and measured.seconds > 0 and measured.peak_memory_mb > 0


def test_adapted_parameters(costs):
    measure, made, rows = costs
    apm = made.method(rows["apm"])
    assert isinstance(apm, Apm)
    assert measure("apm").adapted_parameters == sum(
        value.numel() for value in apm.student.initial.values())
    tpt = measure("tpt")
    assert tpt.adapted_parameters == 4 * made.backbone("clip").model.token_embedding.weight.shape[1]
    source = measure("source")
    assert source.adapted_parameters == 0 and source.steps is None
    assert source.backbone_parameters == sum(
        value.numel() for value in made.backbone("classifier").parameters())


def test_methods_that_adapt_once_are_counted_whole(costs):
    """MEMO's step is no number of steps; RMT's warm-up is left out."""
    measure, *_ = costs
    memo, rmt = measure("memo"), measure("rmt")
    assert memo.backward > memo.forward > 0 and math.isnan(memo.step_forward)
    assert rmt.backward > 0


class Prepares(Method):
    """Does something once, before all images; says whether gradients were on at each call."""

    skip_setup = {"rounds": 0}

    def __init__(self, backbone, *, rounds=10**9):
        super().__init__()
        self.backbone = backbone
        self.grad_modes = []
        assert not rounds

    def forward(self, images):
        self.grad_modes.append(torch.is_grad_enabled())
        return self.backbone(images)

    def reset(self):
        pass


@pytest.fixture
def prepares(costs, monkeypatch):
    """The costs to measure with, and a row of a method that does something once."""
    monkeypatch.setitem(METHODS._registered, "prepares", Prepares)
    return costs[1], config.Row("prepares", "prepares", {"rounds": 10**9},
                                METHODS.signature("prepares"))


def test_a_method_says_itself_what_it_does_once(prepares):
    made, row = prepares
    assert made.measure(row, 2).forward > 0


def test_on_a_gpu_the_warm_up_is_as_the_timed_call_and_comes_before_counting(prepares,
                                                                             monkeypatch):
    made, row = prepares
    backbone, images = made.backbone(row.needs), made.images(made.backbone(row.needs), 2)
    methods, counted = [], []

    def count(run):
        counted.append(len(methods[-1].grad_modes))
        run()

    monkeypatch.setattr(made, "device", torch.device("cuda"))
    monkeypatch.setattr(made, "backbone", lambda kind: backbone)
    monkeypatch.setattr(made, "images", lambda backbone, count: images)
    monkeypatch.setattr(made, "method", lambda row: methods.append(
        Prepares(backbone, rounds=0)) or methods[-1])
    for name, stub in (("count_flops", count), ("reset_peak_memory", lambda device: None),
                       ("synchronize", lambda device: None),
                       ("peak_memory_mb", lambda device: 1.0)):
        monkeypatch.setattr(stopwatch, name, stub)
    made.measure(row, 2)
    assert counted == [1]  # calls before
    assert [method.grad_modes for method in methods] == [[False, False], [False, False]]


def test_untrained_refuses_what_is_unknown():
    for kind, model in (("clip", "ViT-B-17"), ("classifier", "resnet50"),
                        ("classifier", "timm/resnet5000"), ("classifier", "torchvision/resnet1"),
                        ("classifier", "robustbench/Standrd"), ("mae", "mae"),
                        ("rotation", "resnet"), ("mttt_vit", "vit"), ("clp", "ViT-B-16")):
        with pytest.raises(UserError, match="clp" if kind == "clp" else model.split("/")[-1]):
            untrained(kind, model, class_names=["a"] * 10, device=CPU)


def test_untrained_robustbench_needs_no_download():
    net = untrained("classifier", "robustbench/Hendrycks2020AugMix_WRN", class_names=["a"] * 10,
                    device=CPU)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_table_4_in_the_papers_convention(table_4):
    lines = pd.DataFrame(table_4).set_index(["model", "passes"])
    macs = lines["macs"] / 1e9
    assert macs["APM, teacher"].item() == pytest.approx(20.5, abs=0.05)
    assert macs["APM, student, plain net", "one iteration, 512 columns"] == pytest.approx(
        10, abs=0.1)
    assert macs["APM, student, plain net", "one iteration, 1024 columns"] == pytest.approx(
        20.1, abs=0.1)
    assert macs["CLIP ViT-B/16"].item() == pytest.approx(20 * 20.54, abs=0.2)
    swin = lines.loc["Swin-B"].iloc[0]
    assert swin["parameters"] / 1e6 == pytest.approx(87.8, abs=0.05)
    assert swin["macs"] / 1e9 == pytest.approx(20 * 15.4, rel=0.01)
    assert swin["flops"] > 5 * swin["macs"]  # two per multiply-add, and the gradients
    # The exact algebra leaves about half of the plain net's work.
    plain, own = (macs[f"APM, student, {name}", "one iteration, 1024 columns"]
                  for name in ("plain net", "as run here"))
    assert own < 0.56 * plain


def test_tables_print_what_they_are_given(table_4):
    text = cost_table.table_4(table_4)
    assert "| CLIP ViT-B/16 " in text and "462" in text and "410.9" in text
    assert "nan" not in text
    costs = [
        MethodCost(method="apm", backbone="ViT-B-16", backbone_parameters=149_620_737,
                   adapted_parameters=22_000_000, steps=20, step_forward=2e9, step_backward=4e9,
                   forward=40e9, backward=80e9, peak_memory_mb=1234.5, seconds=0.25, num_images=2,
                   share_updated=1.0, forwards_per_image=64.0, backwards_per_image=0.0),
        MethodCost(method="source", backbone="r", backbone_parameters=1, adapted_parameters=0,
                   steps=None, step_forward=math.nan, step_backward=math.nan, forward=1e9,
                   backward=0, peak_memory_mb=1, seconds=1, num_images=2, share_updated=0.0,
                   forwards_per_image=1.0, backwards_per_image=0.0)]
    text = cost_table.method_table(costs)
    head = text.splitlines()[0].split("|")[1:-1]
    assert len({cell.strip() for cell in head}) == len(head)  # no two columns of one name
    row = next(line for line in text.splitlines() if line.startswith("| apm"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "apm", "ViT-B-16", "149.6", "22", "20", "2", "4", "40", "80", "120", "1234", "250", "2",
        "100 %", "64", "0"]
    assert "nan" not in text


def test_command_writes_its_tables(tmp_path, capsys):
    code = cli.main(["cost", "--cfg", "cfgs/digits_c/all.yaml", "--out", str(tmp_path), "--classes",
                     "3", "METHODS", "[source,apm,coop]", "APM.STEPS", "2", "COOP.WEIGHTS",
                     "nowhere.safetensors"])
    out = capsys.readouterr()
    assert code == cli.OK
    assert "3 classes" in out.out and "241.7" in out.out
    assert "coop is left out" in out.err and "nowhere.safetensors" in out.err
    assert (tmp_path / "cost.md").read_text().strip() == out.out.strip()
    written = pd.read_csv(tmp_path / "cost.csv")
    assert list(written["method"]) == ["source", "apm"] and (written["forward"] > 0).all()
    assert (tmp_path / "table4.csv").exists()


def test_what_rows_did_on_real_images_is_shown_from_their_records(tmp_path, write_cell,
                                                                  write_config, capsys):
    did = dict(updated=6, forwards=20, backwards=10, resets=3)
    write_cell("eata", "fog", 9, did=did)
    write_cell("eata", "snow", 9, did=did | {"updated": 2})
    write_cell("sar", "fog", 9)  # of before: it does not tell
    write_config(METHODS=["eata", "sar"], CORRUPTIONS=["fog", "snow"])
    words = ["cost", "--cfg", "cfgs/digits_c/classifiers.yaml", "--classes", "3", "METHODS",
             "[eata,sar]", "EATA.FISHER_ALPHA", "0", "OUTPUT_DIR"]
    assert cli.main([*words, str(tmp_path)]) == cli.OK
    shown = capsys.readouterr().out.partition("Recorded in")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown[2:7]]
    assert cells[0][:5] == ["method", "updated", "forwards/image", "backwards/image",
                            "resets/domain"]
    assert cells[2] == ["eata", "40 %", "2", "1", "3", "200", "3", "100"]
    assert cells[3] == [""]
    assert cli.main([*words, str(tmp_path / "none")]) == cli.OK
    assert "Recorded in" not in capsys.readouterr().out


@pytest.mark.parametrize("words, why", [
    ([], "--cfg FILE"), (["--figure2"], "--out"),
    (["--cfg", "cfgs/digits_c/all.yaml", "--classes", "0"], "1 to 1000"),
    (["--cfg", "cfgs/imagenet_c/all.yaml", "DATA_DIR", "nowhere"], "--classes")])
def test_command_refuses(words, why, capsys):
    assert cli.main(["cost", *words]) == cli.BAD_INPUT
    assert why in capsys.readouterr().err


def test_figure_2_is_drawn(tmp_path):
    counts = [1, 2, 4, 8]
    costs = [PatchCost(n, apm_gflops_per_pass=0.02 * n, apm_gflops_per_image=10.0,
                       apm_seconds=1 / n, vit_gflops=20.5, vit_seconds=0.2) for n in counts]
    path = draw_figure_2(costs, tmp_path / "figure2.png", "CPU")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_every_line_of_figure_2_is_named(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("tta_apm.report.style.save", lambda made, path: drawn.append(made))
    draw_figure_2([PatchCost(n, n, n, n, n, n) for n in (1, 2, 3, 4)], tmp_path, "CPU")
    (legend,) = drawn[0].legends
    names = {line.get_color(): text.get_text()
             for line, text in zip(legend.get_lines(), legend.get_texts())}
    for axes, count in zip(drawn[0].axes, (3, 2)):
        assert len(axes.lines) == count
        assert all(names[line.get_color()] == line.get_label() for line in axes.lines)
        assert "forward only" in axes.get_ylabel()
