"""Plots: pictures of a tiny real sweep, and what they say."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from tta_apm import cli
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.errors import UserError
from tta_apm.report import plots, style
from tta_apm.report.build import build_tables
from tta_apm.report.plots import plot
from tta_apm.report.results import group_rows, load_results, load_rows
from tta_apm.report.wanted import Wanted

pytestmark = pytest.mark.slow  # draws every picture

CONFIG = """\
DATASET: digits_c
CORRUPTIONS: [fog, contrast]
SEVERITY: [5]
NUM_IMAGES: 12
BATCH_SIZE: 12
SEEDS: [0, 1]
METRIC: accuracy
APM: &apm {IMAGE_SIZE: 32, PATCH: 8, CODE: 32, HIDDEN: [64, 32], STEPS: 3, LR: 0.01}
APM_SURVIVING: *apm
METHODS: [apm STEPS 1, apm, apm_surviving]
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The results folder of a small sweep in both orders."""
    folder = tmp_path_factory.mktemp("plots")
    file = folder / "small.yaml"
    file.write_text(CONFIG + f"OUTPUT_DIR: {folder / 'out'}\n")
    for options in (["METHODS", "[source]"], [], ["ORDER", "sorted"]):
        assert cli.main(["--cfg", str(file), *options]) == cli.OK
    return folder / "out"


@pytest.fixture(scope="module")
def table(sweep):
    (table,) = build_tables(load_rows(sweep), metric="accuracy")
    return table


def figures_of(table, method, order):
    (line,) = [line for line in table.lines
               if (line.heading, line.protocol.order) == (method, order)]
    return line.figures


def labels(made):
    return [text.get_text() for legend in made.legends for text in legend.get_texts()]


def test_the_command_draws_all_that_can_be_drawn(sweep, capsys):
    assert cli.main(["plot", str(sweep)]) == cli.OK
    names = [f"{name}.png" for name in ("methods", "teacher", "steps", "steps-2", "audit")]
    assert capsys.readouterr().out.splitlines() == [str(sweep / name) for name in names]
    for name in names:
        with Image.open(sweep / name) as picture:
            assert picture.width == 1280
            assert len(picture.convert("L").getcolors()) > 20  # something is drawn on it


def test_one_kind_goes_where_it_is_told_and_is_the_same_each_time(sweep, tmp_path):
    out = tmp_path / "new" / "audit.svg"
    contents = []
    for _ in range(2):
        assert cli.main(["plot", str(sweep), "--kind", "audit", "--out", str(out),
                         "--metric", "error"]) == cli.OK
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] and b"<svg" in contents[0]


def test_a_map_of_methods_has_every_figure(table):
    (made,) = plots.methods(table)
    (axes,) = made.axes
    shown = [text.get_text() for text in axes.texts]
    expected = [f"{100 * line.figures[name].value:.0f}" for line in table.lines
                for name in table.shown]
    assert shown == expected
    assert [text.get_text() for text in axes.get_xticklabels()] == list(table.shown)


def test_the_teacher_plot_has_the_differences_with_their_intervals(table):
    (made,) = plots.teacher(table)
    (axes,) = made.axes
    with_teacher = [line for line in table.lines if not math.isnan(line.mean.delta)]
    assert len(axes.containers) == len(with_teacher) == 6
    for bars, line in zip(axes.containers, with_teacher):
        figures = [line.figures[name] for name in table.shown]
        points, _, (reach,) = bars.lines
        assert list(points.get_xdata()) == [100 * figure.delta for figure in figures]
        for (low, high), figure in zip(reach.get_segments(), figures):
            assert (low[0], high[0]) == pytest.approx((100 * figure.low, 100 * figure.high))


def test_the_steps_plot_follows_the_rows_that_differ_in_their_steps_only(table):
    shuffled, in_order = plots.steps(table)
    scores, deltas, agreement, cosine = shuffled.axes
    rows = [figures_of(table, method, "shuffled") for method in ("apm STEPS 1", "apm")]
    teachers = [line for line in scores.lines if line.get_linestyle() == "--"]
    for index, name in enumerate(table.shown):
        assert list(scores.containers[index].lines[0].get_xdata()) == [1, 3]
        figures = [row[name] for row in rows]
        assert list(scores.containers[index].lines[0].get_ydata()) == [
            100 * figure.value for figure in figures]
        assert list(deltas.containers[index].lines[0].get_ydata()) == [
            100 * figure.delta for figure in figures]
        assert list(agreement.lines[index].get_ydata()) == [
            100 * figure.agreement for figure in figures]
        assert list(cosine.lines[index].get_ydata()) == [figure.cosine for figure in figures]
        assert list(teachers[index].get_ydata()) == [100 * figure.teacher for figure in figures]
        assert teachers[index].get_color() == scores.containers[index].lines[0].get_color()
    assert labels(shuffled) == ["its teacher, same colour", "fog", "contrast", "mean"]
    assert scores.get_title("left") == "top-1 accuracy in %, std over seeds"


def test_one_seed_has_no_spread_to_speak_of(sweep):
    first = [result for result in load_results(sweep) if result.record.seed == 0]
    (table,) = build_tables(group_rows(first, Wanted()), metric="accuracy")
    made, _ = plots.steps(table)
    assert made.axes[0].get_title("left") == "top-1 accuracy in %"
    assert not any("over seeds" in text.get_text() for made in plots.audit(table)
                   for text in [axes.yaxis.label for axes in made.axes])


def test_rows_are_numbered_only_where_their_names_are_not_enough(table):
    (made,) = plots.teacher(table)
    assert set(labels(made)) == {f"{method}, {order}" for order in ("shuffled", "sorted")
                                 for method in ("apm STEPS 1", "apm", "apm_surviving")}
    same = replace(table, lines=tuple(
        replace(line, heading="apm", protocol=replace(line.protocol, order="shuffled"))
        for line in table.lines))
    (made,) = plots.teacher(same)
    numbers = [int(text.split()[0]) for text in labels(made)]
    assert all(text.endswith(" apm") for text in labels(made)) and len(set(numbers)) == 6


def test_the_audit_sets_apart_what_survives_and_the_order(table):
    (made,) = plots.audit(table)
    (axes,) = made.axes  # apm and apm_surviving; that with another number of steps has no pair
    assert labels(made) == ["teacher", "nothing survives, shuffled", "nothing survives, sorted",
                            "optimiser survives, shuffled", "optimiser survives, sorted"]
    drawn = {bars.get_label(): list(bars.lines[0].get_ydata()) for bars in axes.containers}
    for method, survives in (("apm", "nothing"), ("apm_surviving", "optimiser")):
        for order in ("shuffled", "sorted"):
            figures = figures_of(table, method, order)
            assert drawn[f"{survives} survives, {order}"] == [
                100 * figures[name].value for name in table.shown]


def test_a_kind_that_cannot_be_drawn_says_what_it_needs(sweep, tmp_path):
    file = tmp_path / "source.yaml"
    file.write_text(CONFIG.split("METHODS")[0] + f"OUTPUT_DIR: {tmp_path}\nMETHODS: [source]\n")
    assert cli.main(["--cfg", str(file), "SEEDS", "[0]"]) == cli.OK
    for kind in ("teacher", "steps", "audit"):
        with pytest.raises(UserError, match="needs"):
            plot(tmp_path, kind=kind)
    assert [path.name for path in plot(tmp_path)] == ["methods.png"]
    with pytest.raises(UserError, match="2 pictures of kind steps"):
        plot(sweep, kind="steps", out=tmp_path / "steps.png")


def test_bad_input_is_told_in_a_sentence(sweep, tmp_path, capsys):
    assert cli.main(["plot", str(tmp_path / "nowhere")]) == cli.BAD_INPUT
    assert "holds no results" in capsys.readouterr().err
    made, _ = style.figure()
    with pytest.raises(UserError, match="written as .png or .svg"):
        style.save(made, tmp_path / "plot.docx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        style.save(made, tmp_path / "file" / "plot.png")
    assert cli.main(["plot", str(sweep), "--out", "a.png"]) == cli.BAD_INPUT
    assert "say which with --kind" in capsys.readouterr().err


def test_the_other_commands_import_no_matplotlib():
    subprocess.run([sys.executable, "-c", "import sys; import tta_apm.cli, tta_apm.commands.plot; "
                    "assert not {'matplotlib', 'torch'} & set(sys.modules)"], check=True)


def test_few_differences_are_drawn_with_bars_and_all_with_bars_within_100(write_cell, tmp_path):
    """No difference at all, one, and a student that is right where its teacher never is."""
    for corruption in CORRUPTIONS:
        right, teacher = {"fog": (8, 8), "snow": (8, 7)}.get(corruption, (10, 0))
        write_cell("apm", corruption, right, teacher=teacher)
        write_cell("apm STEPS 1", corruption, 10, teacher=0)
    (table,) = build_tables(load_rows(tmp_path))
    (made,) = plots.teacher(table)
    for bars in made.axes[0].containers:
        _, _, (reach,) = bars.lines
        assert all(high - low > 25 for (low, _), (high, _) in reach.get_segments())
        assert all(-100.001 < low and high < 100 for (low, _), (high, _) in reach.get_segments())
