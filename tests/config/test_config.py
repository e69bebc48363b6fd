"""Configs: layers, sections from signatures, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_methods import NAMES
from tta_apm import config
from tta_apm.config.values import convert, type_of
from tta_apm.config.written import Scalar, word_of
from tta_apm.errors import UserError
from tta_apm.registry import METHODS


def test_a_section_is_the_signature(write):
    cfg = config.load(write("METHODS: tent"))
    assert dict(cfg.TENT) == {"LR": 1e-3, "STEPS": 1, "OPTIMIZER": "adam", "EPISODIC": False}
    assert "SEED" not in config.load(write("METHODS: apm")).APM  # a run sets it


def test_signatures_read_from_text_are_those_of_the_classes():
    from tta_apm.signature import inspect_signature
    for name in NAMES:
        read, inspected = METHODS.signature(name), inspect_signature(METHODS.load(name))
        assert read.defaults == inspected.defaults
        assert read.attributes.items() <= inspected.attributes.items()


def test_base_file_and_command_line_in_that_order(write):
    write("SEEDS: [1, 2]\nBATCH_SIZE: 7\nTENT: {LR: 0.5, STEPS: 3}", "base.yaml")
    cfg = config.load(write("BASE: base.yaml\nMETHODS: [tent]\nBATCH_SIZE: 8\nTENT: {LR: 1e-2}"),
                      ["TENT.STEPS", "4"])
    assert (cfg.SEEDS, cfg.BATCH_SIZE, cfg.TENT.LR, cfg.TENT.STEPS) == ([1, 2], 8, 0.01, 4)
    assert cfg.OUTPUT_DIR == "results/digits_c"
    with pytest.raises(AttributeError):
        cfg.BATCH_SIZE = 9


def test_variants_of_a_method_are_rows(write):
    cfg = config.load(write("METHODS: [tent, 'tent  LR 1e-4 STEPS 2', 'apm HIDDEN [8,4]']"))
    rows = config.rows(cfg)
    assert [row.text for row in rows] == ["tent", "tent LR 1e-4 STEPS 2", "apm HIDDEN [8,4]"]
    assert [row.hyper_parameters.get("lr") for row in rows] == [1e-3, 1e-4, 1e-4]
    assert rows[2].hyper_parameters["hidden"] == [8, 4]
    assert (rows[1].needs, rows[1].scope, rows[2].needs) == ("classifier", "stream", "clip")


def test_scalars_serve_as_lists_and_whole_numbers_as_floats(write):
    cfg = config.load(write("METHODS: tent\nSEVERITY: 3\nTENT: {LR: 1}"), ["SEEDS", "7"])
    assert (cfg.METHODS, cfg.SEVERITY, cfg.SEEDS, cfg.TENT.LR) == (["tent"], [3], [7], 1.0)


def test_a_default_of_none_takes_what_its_annotation_says(write):
    cfg = config.load(write("METHODS: [apm, norm, one_sample]\nAPM: {HIDDEN: 512, POOLING: mean}\n"
                            "NORM: {ALPHA: 1}"), ["ONE_SAMPLE.IMAGE_SIZE", "64"])
    assert (cfg.APM.HIDDEN, cfg.APM.POOLING) == ([512], "mean")
    assert type(cfg.NORM.ALPHA) is float and cfg.ONE_SAMPLE.IMAGE_SIZE == 64
    write("NORM: {ALPHA: 0.5}\nMETHODS: [norm, 'norm ALPHA 1']", "base.yaml")
    none, one = config.rows(config.load(write("BASE: base.yaml\nNORM: {ALPHA: null}")))
    assert none.hyper_parameters["alpha"] is None and one.hyper_parameters["alpha"] == 1.0


@pytest.mark.parametrize("annotation, value, taken", [
    ("int | None", "3", 3), ("None | list[float]", "1", [1.0]),
    ("tuple[str, ...] | None", "a", ["a"]),
    ("int | str | None", "a", "a"), ("Path | None", "a", "a")])  # the last two cannot be told
def test_annotations_of_a_default_of_none(annotation, value, taken):
    wanted = type_of("KEY", None, annotation)
    for written in (word_of(value), Scalar(value)):
        assert convert(written, wanted, "KEY") == taken
    assert convert(Scalar("null"), wanted, "KEY") is None


def test_cfgs_is_an_alias_wherever_one_stands(tmp_path, monkeypatch):
    here = config.find_file(Path("cfgs/digits_c/all.yaml")).read_text()
    monkeypatch.chdir(tmp_path)
    there = config.find_file(Path("cfgs/digits_c/all.yaml")).read_text()
    assert here == there


@pytest.mark.parametrize("text, overrides, message", [
    ("SEVERTY: [5]", [], "unknown key 'SEVERTY': did you mean 'SEVERITY'"),
    ("METHODS: apm\nAPM: {STEPZ: 3}", [], "unknown key 'APM.STEPZ': did you mean 'STEPS'"),
    ("TENTT: {LR: 1.0}", [], "did you mean 'TENT'"),
    ("", ["APM.FOO", "1"], "the command line: unknown key 'APM.FOO'"),
    ("", ["SEVERITY"], "'SEVERITY' has no value"),
    ("BATCH_SIZE: many", [], "BATCH_SIZE takes a whole number, not 'many'"),
    ("BATCH_SIZE: 2.5", [], "takes a whole number, not 2.5"),
    ("BATCH_SIZE: true", [], "takes a whole number, not True"),
    ("METHODS: tent\nTENT: {LR: fast}", [], "TENT.LR takes a number, not 'fast'"),
    ("METHODS: tent\nTENT: {EPISODIC: 1}", [], "takes true or false"),
    ("METHODS: tent\nTENT: 3", [], "TENT is a section"),
    ("DATASET: [a]", [], "DATASET takes text"),
    ("METHODS: [tant]", [], "unknown method 'tant': did you mean 'tent'"),
    ("METHODS: ['tent LR']", [], "'LR' has no value"),
    ("METHODS: ['tent LRR 1']", [], "did you mean 'LR'"),
    ("METHODS: []", [], "METHODS is empty"),
    ("METHODS: [tent, tent]", [], "names something twice"),
    ("DATASET: digit_c", [], "unknown data set 'digit_c': did you mean 'digits_c'"),
    ("CORRUPTIONS: [foggy]", [], "did you mean 'fog'"),
    ("TEMPLATES: singel", [], "did you mean 'single'"),
    ("SETTING: continuous", [], "did you mean 'continual'"),
    ("METRIC: eror", [], "did you mean 'error'"),
    ("SEVERITY: [6]", [], "severities are 1 to 5"),
    ("SEVERITY: []", [], "SEVERITY is empty"),
    ("NUM_IMAGES: 0", [], "NUM_IMAGES 0"),
    ("BATCH_SIZE: 0", [], "BATCH_SIZE 0 must be at least 1"),
    ("DEVICE: gpu", [], "use auto, cpu, cuda"),
    ("DEVICE: mps", [], "use auto, cpu, cuda"),
    ("METHODS: norm\nNORM: {ALPHA: x}", [], "NORM.ALPHA takes a number, not 'x'"),
    ("METHODS: one_sample", ["ONE_SAMPLE.IMAGE_SIZE", "x"], "takes a whole number, not 'x'"),
    ("METHODS: apm\nAPM: {HIDDEN: wide}", [], "APM.HIDDEN takes a whole number, not 'wide'"),
    ("METHODS: apm\nAPM: {POOLING: [mean]}", [], "APM.POOLING takes text, not ['mean']"),
    ("METHODS: ['apm HIDDEN [8,x]']", [], "HIDDEN takes a whole number, not 'x'"),
    ("METHODS: apm_surviving", ["APM_SURVIVING.HIDDEN", "x"], "takes a whole number, not 'x'"),
    ("", ["APM", "x", "APM.STEPS", "3"], "'APM.STEPS' sets a key of 'APM', which is set to 'x'"),
    ("METHODS: ['tent A x A.B 3']", [], "'A.B' sets a key of 'A', which is set to 'x'"),
    ("BASE: nowhere.yaml", [], "BASE file not found"),
    ("PLUGINS: [no_such_module]", [], "'no_such_module' cannot be imported"),
    ("a: [", [], "not valid YAML"),
    ("- a\n- b", [], "must hold KEY: value pairs"),
    ("!!python/object/apply:os.system ['true']", [], "not valid YAML"),
])
def test_bad_input_is_told_in_a_sentence(write, text, overrides, message):
    with pytest.raises(UserError) as caught:
        config.load(write(text), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bases_chain_and_the_nearer_one_rules(write, tmp_path):
    (tmp_path / "other").mkdir()
    write("SEEDS: [1, 2]\nBATCH_SIZE: 7\nTENT: {LR: 0.5, STEPS: 3}", "other/base.yaml")
    write("BASE: other/base.yaml\nBATCH_SIZE: 8\nTENT: {LR: 0.25}", "base.yaml")
    cfg = config.load(write("BASE: base.yaml\nMETHODS: [tent]\nTENT: {EPISODIC: true}"))
    assert (cfg.SEEDS, cfg.BATCH_SIZE) == ([1, 2], 8)
    assert (cfg.TENT.LR, cfg.TENT.STEPS, cfg.TENT.EPISODIC) == (0.25, 3, True)


@pytest.mark.parametrize("first", ["some.yaml", "base.yaml"])
def test_bases_in_a_circle_are_told_in_a_sentence(write, first):
    write(f"BASE: {first}", "base.yaml")
    with pytest.raises(UserError, match="base.yaml: its BASE .* is itself built on this file") as e:
        config.load(write("BASE: base.yaml"))
    assert "\n" not in str(e.value)


def test_a_missing_file_is_told_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cfgs/digits_c/all.yaml'"):
        config.load("cfgs/digits_c/al.yaml")


PLUGIN = """\
from tta_apm.method import Method, register
@register({name!r})
class Mine(Method):
    needs = 'clip'
    def __init__(self, backbone, *, gain=2.0):
        super().__init__()
    def forward(self, images):
        return images
    def reset(self):
        pass
"""


def test_a_plugin_file_adds_its_methods(write, tmp_path):
    plugin = tmp_path / "my_method.py"
    plugin.write_text(PLUGIN.format(name="mine"))
    cfg = config.load(write(f"PLUGINS: {plugin}\nMETHODS: mine"), ["MINE.GAIN", "3"])
    row, = config.rows(cfg)
    assert (row.hyper_parameters, row.needs, row.scope) == ({"gain": 3.0}, "clip", "image")


def test_plugin_files_of_the_same_name_are_two(write, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write(PLUGIN.format(name=f"of_the_{name}"), f"{name}/twin.py")
    plugins = f"[{tmp_path}/first/twin.py, {tmp_path}/second/twin.py]"
    cfg = config.load(write(f"PLUGINS: {plugins}\nMETHODS: [of_the_first, of_the_second]"))
    assert len(config.rows(cfg)) == 2


def test_a_plugin_that_failed_is_tried_again(write, tmp_path):
    plugin = write("import no_such_module", "mended.py")
    with pytest.raises(UserError, match="mended.py.* cannot be imported: .*no_such_module"):
        config.load(write(f"PLUGINS: {plugin}"))
    write(PLUGIN.format(name="mended"), "mended.py")
    assert config.rows(config.load(write(f"PLUGINS: {plugin}\nMETHODS: mended")))


def test_plugins_left_blank_are_none(write):
    assert config.load(write("PLUGINS:")).PLUGINS == []
