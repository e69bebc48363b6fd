"""Every registered method refuses invalid numbers when it is constructed."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
import torch
from safetensors.torch import save_file

from small_methods import NAMES
from tta_apm import config
from tta_apm.errors import UserError
from tta_apm.fields.checkpoint import load_student
from tta_apm.fields.config import PretrainConfig, from_config, from_plain, keys
from tta_apm.registry import METHODS


def numbers() -> list[tuple[str, str, float]]:
    """Each method with each of its keys that is a fraction or a count."""
    found = []
    for name in NAMES:
        for key, default in METHODS.signature(name).settings.items():
            if type(default) is float or key == "alpha":
                found += [(name, key, value) for value in (-1.0, math.nan, math.inf, -math.inf)]
            elif type(default) is int and key != "trigger_layer":  # that one counts from the end
                found.append((name, key, -1))
    return found


def test_the_list_holds_every_learning_rate():
    assert {name for name, key, _ in numbers() if key == "lr"} >= {
        "apm", "apm_surviving", "memo", "memo_surviving", "one_sample", "rmt", "tent", "tpt",
        "tpt_surviving", "ttt", "ttt_mae", "ttt_mae_surviving", "ttt_online"}
    assert len(numbers()) > 100


@pytest.mark.parametrize("name, key, value", numbers())
def test_numbers_out_of_range_are_told_when_a_method_is_built(backbones, name, key, value):
    signature = METHODS.signature(name)
    with pytest.raises(UserError) as caught:
        METHODS.load(name)(backbones[signature.needs], **{key: value})
    assert key in str(caught.value) and "\n" not in str(caught.value)


def test_a_student_that_no_memory_holds_is_told_at_once(digits_clip):
    with pytest.raises(UserError, match="a student of widths .* has 1e.14 weights"):
        METHODS.load("apm")(digits_clip, hidden=(10**7, 10**7), image_size=32, patch=8)


@pytest.mark.parametrize("overrides, message", [
    (("LR", "nan"), "LR: nan is not a finite number"), (("LR", "-1"), "LR -1.0 must be positive"),
    (("SEED", "-1"), "SEED -1: a seed is 0 to"), (("DEVICE", "cpu:3"), "use auto, cpu, cuda"),
    (("CROP", ".inf"), "CROP: .inf is not a finite"),
    (("RGB_WEIGHT", "1e999"), "RGB_WEIGHT: inf is"),
    (("STEPS", "010"), "takes a whole number, not '010'"),
    (("HIDDEN", "[10000000,10000000]"), "has 1e+14 weights"), (("OUTPUT_DIR", ""), "is empty"),
    (("CODE", "4000000000000"), "weights, too many"),
    (("OUTPUT_DIR", "x" * 256), "has 256 bytes"), (("HIDDEN", "[4,'']"), "takes a whole number"),
    (("IMAGES", "a\0"), "a null character"), (("SEED", "1", "SEED", "2"), "given twice")])
def test_configs_are_checked_before_anything_is_loaded(overrides, message):
    with pytest.raises(UserError) as caught:
        from_config(config.load_keys("cfgs/pretrain/quick.yaml", overrides, keys()))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_text_of_a_config_is_taken_as_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    made = from_config(config.load_keys(
        "cfgs/pretrain/quick.yaml", ["IMAGES", "~/a # b", "OUTPUT_DIR", "2024"], keys()))
    assert (made.images, made.output_dir) == ("/home/me/a # b", "2024")


@pytest.mark.parametrize("key", [field.name for field in fields(PretrainConfig)])
@pytest.mark.parametrize("value", [None, [], {}, "x", -1, math.nan, True, [1.5], 10**400],
                         ids=lambda value: repr(value)[:9])
def test_configs_in_files_of_wrong_types_or_ranges_name_the_file_and_the_field(key, value):
    plain = json.loads(json.dumps(vars(PretrainConfig())))
    if isinstance(value, str) and key in ("images", "weights", "cache", "output_dir", "teacher"):
        return  # these take any text
    with pytest.raises(UserError) as caught:
        from_plain(plain | {key: value}, "some/file")
    told = str(caught.value)
    assert told.startswith("some/file: ") and key in told.lower() and "\n" not in told
    assert len(told) < 300


@pytest.mark.parametrize("values", [None, [], "x", 3, {}, {"lr": 1.0}])
def test_what_is_no_config_names_the_file(values):
    with pytest.raises(UserError, match="some/file: its config must have the keys"):
        from_plain(values, "some/file")


def test_a_student_with_a_config_that_cannot_be_names_file_and_key(tmp_path):
    file = tmp_path / "student.safetensors"
    about = {"tta_apm": "student", "recipe": json.dumps(vars(PretrainConfig()) | {"lr": "fast"}),
             "feature_dim": "3"}
    save_file({"x": torch.zeros(1)}, file, metadata=about)
    with pytest.raises(UserError, match="student.safetensors: lr of its config is 'fast'"):
        load_student(file)


def test_a_config_is_read_from_its_file_as_it_was():
    made = PretrainConfig(hidden=(5, 6), lr=1, crop=0.5)
    assert from_plain(json.loads(json.dumps(vars(made))), "some/file") == made
