"""Values: text as it is written, numbers as they read, and what no run could use."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest

from places import ROOT
from tta_apm import config, errors
from tta_apm.config.values import expanded
from tta_apm.config.written import Scalar, split, word_of
from tta_apm.errors import UserError


@pytest.fixture
def refused(write):
    """The sentence that a config is refused with, at once."""
    def tell(text: str, *overrides: str) -> str:
        file = write(text)
        begin = time.process_time()
        with pytest.raises(UserError) as caught:
            config.load(file, overrides)
        assert time.process_time() - begin < 30  # of the CPU: alias bombs take minutes
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        return str(caught.value)
    return tell


# Text

@pytest.mark.parametrize("text", [
    "a # b", "2024", "010", "1:30", "1_0", "yes", "null", "~x", "2024-01-01", "[a]", "{a: b}",
    "a: b", "- a", "*a", "&a", "!a", "%a", "@a", "line\nbreak", "it's", "'", "1e400", "a,b", "ü",
    "a$", "$", "${", " a "])
def test_text_on_the_command_line_is_taken_as_it_stands(write, text):
    cfg = config.load(write(""), ["OUTPUT_DIR", text])
    assert cfg.OUTPUT_DIR == text


@pytest.mark.parametrize("text", ["2024", "010", "1:30", "1_0", "yes", "2024-01-01", "1e3", "0x10"])
def test_text_in_a_file_is_taken_as_it_stands(write, text):
    cfg = config.load(write(f"OUTPUT_DIR: {text}\nMETHODS: [apm]\nAPM: {{POOLING: {text}}}"))
    assert cfg.OUTPUT_DIR == text and cfg.APM.POOLING == text


@pytest.mark.parametrize("written, text", [
    ('""', ""), ("''", ""), ("", ""), ("'[a]'", "[a]"), ('"a # b"', "a # b"),
    ("'a' and 'b'", "'a' and 'b'")])
def test_quotes_around_all_of_a_value_fall_away(write, written, text):
    cfg = config.load(write(""), ["FROST_DIR", written, "CLASSIFIER.WEIGHTS", written])
    assert cfg.FROST_DIR == text and cfg.CLASSIFIER.WEIGHTS == text


@pytest.mark.parametrize("written, entries", [
    ("[a, b]", ["a", "b"]), ("[a,b,]", ["a", "b"]), ("a", ["a"]), ("['a, b', c]", ["a, b", "c"]),
    ('["a]", b]', ["a]", "b"]), ("[it's, b]", ["it's", "b"]), ("[2024, yes]", ["2024", "yes"]),
    ("[x OPTIONS [A,0.0], y]", ["x OPTIONS [A,0.0]", "y"]), ("[]", []), ("a # b", ["a # b"]),
    ("'[a].py'", ["[a].py"]), ("[x PHRASE 'a, b', y]", ["x PHRASE 'a, b'", "y"])])
def test_lists_on_the_command_line(write, written, entries):
    cfg = config.load(write(""), ["PAPER.ROWS", written])
    assert cfg.PAPER.ROWS == entries


def test_every_list_says_what_it_holds(write):
    """Also those that are empty by default, which only a table in the config can tell."""
    def lists(types):
        for key, value in types.items():
            yield from lists(value) if isinstance(value, dict) else [(key, value)]
    found = {key: wanted.scalar for key, wanted in lists(config.CORE_TYPES) if wanted.is_list}
    assert len(found) >= 8 and None not in found.values()
    cfg = config.load(write("CLIP: {MEAN: [0, 0.5, 1e-1]}"), ["CLASSIFIER.STD", "[.5, 1, 2]"])
    assert (cfg.CLIP.MEAN, cfg.CLASSIFIER.STD) == ([0.0, 0.5, 0.1], [0.5, 1.0, 2.0])


def test_rows_hold_lists_and_text_with_spaces(write):
    rows = config.rows(config.load(write(""), [
        "METHODS", "[apm HIDDEN [8, 4], tpt PHRASE 'a  photo', tpt PHRASE \"it's, \" LR 1]"]))
    assert [row.text for row in rows] == ["apm HIDDEN [8, 4]", "tpt PHRASE 'a  photo'",
                                          'tpt PHRASE "it\'s, " LR 1']
    assert rows[0].hyper_parameters["hidden"] == [8, 4]
    assert [row.hyper_parameters["phrase"] for row in rows[1:]] == ["a  photo", "it's, "]


def test_an_option_list_of_another_benchmark_needs_no_inner_quotes(write):
    plugin = write("""\
from tta_apm.method import Method, register
@register("with_options")
class WithOptions(Method):
    def __init__(self, backbone, *, name: str = "", options: "Sequence[str]" = ()):
        super().__init__()
    forward = reset = None
""", "with_options.py")
    row, other = config.rows(config.load(write(""), [
        "PLUGINS", str(plugin),
        "METHODS", "[with_options NAME eata OPTIONS [EATA.FISHER_ALPHA,0.0], source]"]))
    assert row.hyper_parameters == {"name": "eata", "options": ["EATA.FISHER_ALPHA", "0.0"]}
    assert other.method == "source"


def test_paths_are_expanded_once(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/$USER")
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("DISK", "~/$HOME")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expanded("~/x") == "/home/$USER/x"
    assert expanded("~/$USER") == "/home/$USER/me"
    assert expanded("$DISK/${USER}") == "~/$HOME/me"
    assert expanded("~/a,$USER/b,~") == "/home/$USER/a,me/b,/home/$USER"
    assert expanded("$NOWHERE/a$b/~") == "$NOWHERE/a$b/~"
    cfg = config.load(write("DATA_DIR: ~/data\nOUTPUT_DIR: ${USER}\nMETHODS: coop"), [
        "FROST_DIR", "~", "COOP.WEIGHTS", "~/c", "TPT.PHRASE", "~/$USER",
        "MAE.WEIGHTS", "~/a,$USER"])
    home = "/home/$USER"
    assert (cfg.DATA_DIR, cfg.OUTPUT_DIR, cfg.FROST_DIR) == (f"{home}/data", "me", home)
    assert (cfg.COOP.WEIGHTS, cfg.MAE.WEIGHTS) == (f"{home}/c", f"{home}/a,me")
    assert cfg.TPT.PHRASE == "~/$USER"  # no path


def test_a_base_may_begin_at_home(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("BATCH_SIZE: 7", "base.yaml")
    assert config.load(write("BASE: ~/base.yaml")).BATCH_SIZE == 7


# Numbers

@pytest.mark.parametrize("key, text, value", [
    ("BATCH_SIZE", "7", 7), ("SEEDS", "[0, 9223372036854775807]", [0, 2**63 - 1]),
    ("DIRICHLET", "1e-3", 1e-3), ("DIRICHLET", ".5", 0.5), ("DIRICHLET", "5.", 5.0),
    ("DIRICHLET", "1E+2", 100.0), ("DIRICHLET", "3", 3.0), ("CORRUPT", "True", True),
    ("NUM_IMAGES", "-1", -1), ("BATCH_SIZE", "1000000000000000", 10**15)])
def test_numbers_read_as_they_look(write, key, text, value):
    for cfg in (config.load(write(""), [key, text]), config.load(write(f"{key}: {text}"))):
        assert cfg[key] == value and type(cfg[key]) is type(value)


@pytest.mark.parametrize("text", [
    "010", "1:30", "1_0", "0x10", "0o17", "1e2", "6.0", "'5'", "true", "many", "", "[[5]]",
    "{a: 5}", "9" * 5000, "[" * 2000, "2024-99-99"])
@pytest.mark.parametrize("key", ["BATCH_SIZE", "SEEDS"])
def test_what_is_no_whole_number_is_refused(refused, key, text):
    assert f"{key}" in refused("", key, text)
    if text.count("[") < 100:
        assert f"{key}" in refused(f"{key}: {text}")


@pytest.mark.parametrize("text", [
    ".inf", "-.inf", "inf", "nan", ".nan", ".NaN", "1e400", "1_0", "1:30", "0x1p3", "yes", "1e",
    "1,5"])
@pytest.mark.parametrize("where", ["DIRICHLET", "TENT.LR", "NORM.ALPHA"])
def test_what_is_no_finite_number_is_refused(refused, where, text):
    assert where in refused("METHODS: [tent, norm]", where, text)
    *section, key = where.split(".")
    written = f"{section[0]}: {{{key}: '{text}'}}" if section else f"{key}: {text}"
    assert where in refused(f"METHODS: [tent, norm]\n{written}")
    assert "METHODS" in refused("", "METHODS", f"tent LR {text}")


@pytest.mark.parametrize("seeds, told", [
    ("-1", "SEEDS -1: a seed is 0 to 2**63 - 1"), ("[1,-5]", "SEEDS -5: a seed is 0 to"),
    ("9223372036854775808", "beyond 2**63 - 1"), ("1" + "0" * 400, "beyond 2**63 - 1")])
def test_seeds_that_no_generator_takes_are_refused(refused, seeds, told):
    assert told in refused("", "SEEDS", seeds)


# What cannot be

@pytest.mark.parametrize("overrides, message", [
    (["METHODS", ""], "METHODS: an entry is empty"),
    (["METHODS", "[tent, '']"], "METHODS: an entry is empty"),
    (["METHODS", "[tent,,apm]"], "METHODS: an entry is empty"),
    (["METHODS", "[' ']"], "METHODS: an entry is empty"),
    (["METHODS", "5"], "unknown method '5'"),
    (["METHODS", "[tent"], "METHODS: '[tent' is not a list"),
    (["METHODS", "[tent] x"], "METHODS: '[tent] x' is not a list"),
    (["PLUGINS", "['']"], "PLUGINS: an entry is empty"),
    (["PLUGINS", ".x"], "PLUGINS: '.x' cannot be imported"),
    (["DEVICE", "cpu:3"], "use auto, cpu, cuda"),
    (["DEVICE", "auto:9"], "use auto, cpu, cuda"),
    (["DEVICE", "cuda:x"], "use auto, cpu, cuda"),
    (["OUTPUT_DIR", "x" * 256], "has 256 bytes"),
    (["OUTPUT_DIR", "ü" * 128], "has 256 bytes"),
    (["OUTPUT_DIR", "x/" * 2100], "has 4200 bytes"),
    (["OUTPUT_DIR", "a\0b"], "a null character"),
    (["OUTPUT_DIR", "a\udc80b"], "not UTF-8 text"),
    (["DATA_DIR", "x" * 300], "DATA_DIR: xxx"),
    (["DATA_DIR", ""], "DATA_DIR is empty"),
    (["METHODS", "source source"], "METHODS: 'source source': overrides come as KEY VALUE pairs"),
    (["METHODS", "coop WEIGHTS " + "x" * 300], "WEIGHTS: xxx"),
    (["SEEDS", "1", "SEEDS", "2"], "the command line: SEEDS is given twice"),
    (["TENT.LR", "1", "TENT.LR", "1"], "the command line: TENT.LR is given twice"),
    (["METHODS", "tent LR 1 LR 2"], "LR is given twice"),
    (["APM.STEPS", "3", "APM", "x"], "'APM' is set to 'x' as a whole"),
    (["APM", "x", "APM.STEPS", "3"], "of 'APM', which is set to 'x'"),
    (["METHODS", "[tent, 'tent ']"], "'tent' and 'tent ' are the same row"),
    (["METHODS", "[tent LR 1e-3, tent LR 0.001]"], "'tent LR 1e-3' and 'tent LR 0.001' are"),
    (["METHODS", "[source, apm, apm STEPS 20]"], "'apm' and 'apm STEPS 20' are the same row"),
    (["METHODS", "[norm ALPHA null, norm]"], "are the same row"),
    (["METHODS", "[tent STEPS 2, tent]", "TENT.STEPS", "2"], "are the same row"),
])
def test_what_cannot_run_is_told_in_a_sentence(refused, overrides, message):
    assert message in refused("", *overrides)


def test_rows_that_differ_are_not_one(write):
    rows = "[memo, memo FLIP false, memo LR 1, apm, apm_surviving]"
    assert len(config.rows(config.load(write(""), ["METHODS", rows]))) == 5


@pytest.mark.slow
@pytest.mark.parametrize("text, message", [
    ("SEEDS: 1\nMETHODS: tent\nSEEDS: 2", "SEEDS is given twice, in lines 1 and 3"),
    ("METHODS: tent\nTENT:\n  LR: 1\n  LR: 1", "LR is given twice, in lines 3 and 4"),
    ("BASE: a\nBASE: b", "BASE is given twice"),
    ("DATASET:", "DATASET takes text, not None"),
    ("DATASET: null", "DATASET takes text, not None"),
    ("BASE: [a]", "BASE takes text"),
    ("TENT: {LR: !!float 1, STEPS: !mine 3}", "unknown tag"),
    ("[a]: 3", "a key is one word"),
    ("[" * 2000, "not valid YAML"),
    ("a: &a [*a]", "holds more than"),
    ("a: &a [" + "x," * 100 + "]\nb: &b [" + "*a," * 100 + "]\nc: [" + "*b," * 100 + "]",
     "holds more than"),
    ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
     "holds more than"),
])
def test_what_no_file_may_hold_is_told_in_a_sentence(refused, text, message):
    assert message in refused(text)


def test_aliases_and_merges_are_followed(write):
    cfg = config.load(write("""\
METHODS: [memo, memo_surviving, tent]
MEMO: &memo {LR: 1, FLIP: false}
MEMO_SURVIVING: *memo
TENT: {<<: {LR: 2}, STEPS: 3}
"""))
    assert (cfg.MEMO.LR, cfg.MEMO_SURVIVING.LR, cfg.MEMO_SURVIVING.FLIP) == (1.0, 1.0, False)
    assert (cfg.TENT.LR, cfg.TENT.STEPS) == (2.0, 3)


@pytest.mark.parametrize("content, told", [
    ("METHODS: tent".encode("utf-16"), "not UTF-8 text"), (b"DATASET: \xfc", "not UTF-8 text"),
    (b"\xef\xbb\xbfBATCH_SIZE: 7\r\n", ""), (b"BATCH_SIZE: 7\r", "")])
def test_files_are_utf_8(tmp_path, content, told):
    file = tmp_path / "some.yaml"
    file.write_bytes(content)
    if not told:
        assert config.load(file).BATCH_SIZE == 7
        return
    with pytest.raises(UserError, match=told):
        config.load(file)


def test_no_file_is_named():
    with pytest.raises(UserError, match="no config file is named"):
        config.load("")


# Plugins

@pytest.mark.parametrize("text, message", [
    ("x = 1\n1/0", "ZeroDivisionError: division by zero ({file}, line 2)"),
    ("x = 1\n\ndef f(:", "({file}, line 3)"),
    ("import sys\nsys.exit()", "SystemExit: no message ({file}, line 2)"),
    ("import sys\nsys.exit(3)", "SystemExit: 3 ({file}, line 2)"),
    ("raise GeneratorExit", "GeneratorExit: no message ({file}, line 1)"),
    ("class E(Exception):\n    def __str__(self): return 1/0\nraise E", "line 3)"),
    ("from tta_apm.method import register\nregister('tent')(object)",
     "there is a method 'tent' already ({file}, line 2)"),
    ("import json\njson.loads('')", "Expecting value: line 1 column 1 (char 0) ({file}, line 2)"),
])
def test_whatever_a_plugin_raises_is_a_sentence_with_the_line(write, refused, text, message):
    plugin = write(text, "broken.py")
    told = refused(f"PLUGINS: [{plugin}]")
    assert f"PLUGINS: {str(plugin)!r} cannot be imported" in told
    assert message.format(file=plugin) in told


@pytest.mark.parametrize("name, told", [
    ("clip", "would share the section CLIP with a key of all configs"),
    ("Tent", "would share the section TENT with method 'tent'"),
    ("a b", "one word, not 'a b'"), ("", "one word, not ''")])
def test_a_name_that_cannot_have_a_section_is_told(write, refused, name, told):
    plugin = write(f"""\
from tta_apm.method import Method, register
@register({name!r})
class Mine(Method):
    needs = "clip"
    scope = "image"
    def __init__(self, backbone, *, gain: float = 1.0):
        super().__init__()
    forward = reset = None
""", "named.py")
    assert told in refused(f"PLUGINS: [{plugin}]", "METHODS", f"[{name or 'source'}]")
    if name == "clip":  # installed, not used: the key of all configs stays what it is
        cfg = config.load(write(f"PLUGINS: [{plugin}]\nCLIP: {{MODEL: x}}"))
        assert cfg.CLIP.MODEL == "x" and "WEIGHTS" in cfg.CLIP


@pytest.mark.parametrize("default, told", [
    ("torch.zeros(3)", "of type Tensor"), ("Path('x')", "of type PosixPath"),
    ("[1, torch.zeros(1)]", "of type list"), ("float('inf')", "not a finite number"),
    ("(0.1, float('nan'))", "not a finite number"), ("{1: 2}", "of type dict")])
def test_a_default_that_no_config_can_hold_is_told(write, refused, default, told):
    plugin = write(f"""\
import torch
from pathlib import Path
from tta_apm.method import Method
from tta_apm.registry import METHODS
class Odd(Method):
    def __init__(self, backbone, *, gain={default}):
        super().__init__()
    forward = reset = None
METHODS._registered["odd"] = Odd
""", f"odd_{abs(hash(default))}.py")
    text = refused(f"PLUGINS: [{plugin}]\nMETHODS: odd")
    assert told in text and "keyword gain" in text and "'odd'" in text


# The helpers

def test_numbers_out_of_range_are_named():
    errors.at_least(0, "mine", lr=0.0, steps=3)
    errors.positive("mine", lr=1e-300)
    errors.between(0, 1, "mine", share=0.0, other=1)
    for check in (lambda value: errors.at_least(0, "mine", lr=value),
                  lambda value: errors.positive("mine", lr=value),
                  lambda value: errors.between(0, 1, "mine", lr=value)):
        for value in (-1, -math.inf, math.inf, math.nan):
            with pytest.raises(UserError, match=f"mine: lr {value} must be"):
                check(value)
    with pytest.raises(UserError, match="lr 0 must be positive"):
        errors.positive("mine", lr=0)


def test_of_many_names_only_some_are_told():
    names = [f"model_{number}" for number in range(200)]
    assert len(errors.nearest("hf-hub:x/y", names)) < 200
    assert "there are 200" in errors.nearest("hf-hub:x/y", names)
    assert errors.nearest("model-7", names) == "did you mean 'model_7'?"


def test_split_keeps_what_is_enclosed():
    assert split("a  b\tc", " ") == ["a", "b", "c"]
    assert split("a [b c] 'd e'", " ") == ["a", "[b c]", "'d e'"]
    assert split("a,{b,c},", ",") == ["a", "{b,c}", ""]
    assert split("it's b's", " ") == ["it's", "b's"]
    assert split("'open b", " ") == ["'open", "b"]
    assert (word_of("''"), word_of("'a'b'").text) == (word_of('""'), "'a'b'")
    assert Scalar("5").plain() == 5 and Scalar("5", quoted=True).plain() == "5"


@pytest.mark.slow
def test_bad_values_answer_at_once_and_without_torch():
    script = ("import sys, time; begin = time.process_time()\n"
              "from tta_apm import cli\n"
              "code = cli.main(['--cfg', 'cfgs/digits_c/all.yaml', 'APM.LR', 'nan'])\n"
              "print(code, 'torch' in sys.modules, time.process_time() - begin < 2)")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True,
                          timeout=60)
    assert done.stdout == "2 False True\n" and "APM.LR: nan is not a finite number" in done.stderr
