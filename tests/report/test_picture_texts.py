"""Pictures: in everything that a command draws, no text leaves the picture or lies on a mark."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Text

from tta_apm import cli
from tta_apm.cost.figure2 import PatchCost, draw_figure_2
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.fields.checkpoint import build_student, save_student
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.photos import aspect_of, find_image
from tta_apm.fields.pictures import Panel, draw_losses, draw_panels
from tta_apm.report import style

pytestmark = pytest.mark.slow  # draws every picture

CHINA, FLOWER = "sklearn/china.jpg", "sklearn/flower.jpg"
LONG = "tpt WEIGHTS digits_coop_of_a_long_name.safetensors STEPS 10 LR 0.005 AUGMENTATION crops"


def tick_labels(figure):
    """The labels of all ticks, with whether each is drawn: beyond the limits none is."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            edge = 1e-6 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                shown = low - edge <= tick.get_loc() <= high + edge
                yield from ((label, shown) for label in (tick.label1, tick.label2))


def boxes(figure):
    """Each text that is drawn, with its box in pixels."""
    figure.draw_without_rendering()
    hidden = {id(label) for label, shown in tick_labels(figure) if not shown}
    return [(text, text.get_window_extent()) for text in figure.findobj(Text)
            if text.get_visible() and text.get_text().strip() and id(text) not in hidden]


def outside(figure):
    """The texts that leave the picture, by more than half a pixel."""
    edge = figure.bbox.padded(0.5)
    return [text.get_text() for text, box in boxes(figure)
            if not (edge.contains(box.x0, box.y0) and edge.contains(box.x1, box.y1))]


def covering(figure):
    """The texts that lie on a mark of a line; those of a map lie on its colours on purpose."""
    seen = boxes(figure)
    return [text.get_text() for axes in figure.axes for line in axes.lines
            if line.get_marker() not in ("", "None", None)
            for point in line.get_transform().transform(np.array(line.get_xydata(), float))
            for text, box in seen if box.contains(*point)]


def overlapping(figure):
    """The texts that lie on one another; the boxes of turned ones may."""
    found = [(text.get_text(), box.padded(-1)) for text, box in boxes(figure)
             if not text.get_rotation() % 90]
    return [(one, other) for index, (one, box) in enumerate(found)
            for other, second in found[:index] if box.overlaps(second)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved, at the resolution of the files."""
    figures = []

    def save(figure, path):
        figure.set_dpi(style.DOTS_PER_INCH)
        figures.append(figure)
        return path
    monkeypatch.setattr(style, "save", save)
    return figures


def check(figures):
    assert figures
    for figure in figures:
        assert not outside(figure)
        assert not covering(figure)
        assert not overlapping(figure)


def test_the_measure_sees_what_it_is_for():
    figure, (axes,) = style.figure()
    axes.plot([0, 1], [0, 1], marker="o")
    check([figure])
    axes.set_title("a title " * 30)
    axes.annotate("a label", (0, 0))
    axes.text(0.5, 0.2, "one text"), axes.text(0.5, 0.2, "another text")
    assert outside(figure) == ["a title " * 30] and covering(figure) == ["a label"]
    assert overlapping(figure) == [("another text", "one text")]


@pytest.mark.parametrize("names", [("apm STEPS 1", "apm STEPS 3", "apm_surviving"),
                                   (LONG, LONG.replace("10", "20"), "apm_surviving " + "X" * 80)])
@pytest.mark.parametrize("corruptions", [("fog", "snow"), CORRUPTIONS])
def test_plots_of_a_folder(write_cell, tmp_path, drawn, names, corruptions):
    for index, row in enumerate(names):
        for order in ("shuffled", "sorted"):
            for corruption in corruptions:
                write_cell(row, corruption, 8 - index, teacher=5, order=order,
                           hyper_parameters={"steps": index % 2},
                           survives="optimiser and momentum" if index == 2 else "nothing",
                           images_from="digits, corrupted on the fly with cifar-C constants")
    write_cell(LONG, "fog", 5)
    assert cli.main(["plot", str(tmp_path)]) == cli.OK
    check(drawn)
    assert len(drawn) == 5  # methods, teacher, steps in both orders, audit


@pytest.mark.parametrize("seconds", [[2.2, 2.4, 1.2, 1.0, 0.4, 0.25, 0.2, 0.16, 0.13, 0.12],
                                     np.full(10, 0.25)])
def test_figure_2(tmp_path, drawn, seconds):
    costs = [PatchCost(patches, apm_gflops_per_pass=0.02 * patches, apm_gflops_per_image=10.0,
                       apm_seconds=second, vit_gflops=20.5, vit_seconds=0.27)
             for patches, second in zip((1, 2, 4, 7, 16, 32, 64, 128, 256, 512), seconds)]
    draw_figure_2(costs, tmp_path / "figure2.png",
                  "NVIDIA GeForce RTX 4090 Laptop GPU, a long name, 2 threads, torch 2.15.0+cu132")
    check(drawn)


@pytest.fixture
def student(tmp_path):
    cfg = PretrainConfig(image_size=24, patch=4, code=8, hidden=(12, 10), teacher="none",
                         grid_weight=0.0)
    save_student(tmp_path / "student.safetensors", build_student(cfg, 5), cfg)
    return tmp_path / "student.safetensors"


@pytest.mark.parametrize("words", [
    ("islands", CHINA, FLOWER, "--embedding", "pca"), ("reconstruct", CHINA),
    ("interpolate", CHINA, FLOWER)])
def test_pictures_of_a_field_keep_the_shape_of_the_photographs(student, tmp_path, drawn, words):
    assert cli.main([*words, "--student", str(student), "--out", str(tmp_path / "a.png")]) == 0
    check(drawn)
    for axes in drawn[0].axes:
        for image in axes.get_images():
            box = image.get_window_extent()
            assert box.height / box.width == pytest.approx(427 / 640, rel=0.02)


def test_a_photograph_is_measured_as_it_is_seen(tmp_path):
    assert aspect_of(find_image(CHINA)) == pytest.approx(427 / 640)


def test_error_maps_have_their_scale_beside_them(tmp_path, drawn):
    for aspect in (0.5, 1.0, 2.0):
        rows = [[Panel("a name of a file that is long.jpg", np.zeros((8, 8, 3)), aspect=aspect),
                 *(Panel(f"step {step}\nloss 0.5", np.random.default_rng(step).random((6, 6)),
                         aspect=aspect) for step in range(7))]] * 2
        draw_panels(rows, tmp_path / "panels.png", "squared error")
    check(drawn)


def test_losses_of_a_training(tmp_path, drawn):
    losses = np.exp(-np.outer(np.arange(50), [0.1, 0.2, 0.3]))
    draw_losses(losses, ["grid", "cls", "rgb"], tmp_path / "losses.png")
    draw_losses(np.zeros((5, 1)), ["grid"], tmp_path / "none.png")
    check(drawn)
