"""Configs: layers, sections from signatures, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tta_apm import config
from tta_apm.errors import UserError
from tta_apm.registry import METHODS

# Those of sweeps: a config of `tta-apm pretrain` has keys of its own.
FILES = [file for file in sorted((Path(__file__).parents[1] / "configs").glob("*/*.yaml"))
         if file.parent.name != "pretrain"]


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "some.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name
    return write


@pytest.mark.parametrize("file", [file for file in FILES if file.stem != "base"], ids=str)
def test_every_config_loads_and_says_what_it_is(file):
    cfg = config.load(file)
    assert config.rows(cfg)
    assert file.read_text().startswith("# ")


def test_a_section_is_the_signature(write):
    cfg = config.load(write("METHODS: tent"))
    assert dict(cfg.TENT) == {"LR": 1e-3, "STEPS": 1, "OPTIMIZER": "adam", "EPISODIC": False}
    assert "SEED" not in config.load(write("METHODS: apm")).APM  # a run sets it


def test_signatures_read_from_text_are_those_of_the_classes():
    from tta_apm.registry import _inspect_signature
    for name in METHODS.names():
        read, inspected = METHODS.signature(name), _inspect_signature(METHODS.load(name))
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
    ("BATCH_SIZE: 0", [], "at least one image"),
    ("DEVICE: gpu", [], "use auto, cpu, cuda"),
    ("BASE: nowhere.yaml", [], "there is no BASE file"),
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


def test_only_one_level_of_inheritance(write):
    write("BASE: other.yaml", "base.yaml")
    with pytest.raises(UserError, match="one level"):
        config.load(write("BASE: base.yaml"))


def test_a_missing_file_is_told_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cfgs/digits_c/all.yaml'"):
        config.load("cfgs/digits_c/al.yaml")


def test_a_plugin_file_adds_its_methods(write, tmp_path):
    plugin = tmp_path / "my_method.py"
    plugin.write_text(
        "from tta_apm.method import Method, register\n"
        "@register('mine')\n"
        "class Mine(Method):\n"
        "    needs = 'clip'\n"
        "    def __init__(self, backbone, *, gain=2.0):\n"
        "        super().__init__()\n"
        "    def forward(self, images):\n"
        "        return images\n"
        "    def reset(self):\n"
        "        pass\n")
    cfg = config.load(write(f"PLUGINS: {plugin}\nMETHODS: mine"), ["MINE.GAIN", "3"])
    row, = config.rows(cfg)
    assert (row.hyper_parameters, row.needs, row.scope) == ({"gain": 3.0}, "clip", "image")
