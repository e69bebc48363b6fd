"""Precision modes against float64, and their side effects."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm import cli
from tta_apm.apm.method import Apm
from tta_apm.bench.evaluate import to_device
from tta_apm.bench.records import find_records, load_record
from tta_apm.data.dataset import Domain
from tta_apm.data.digits import digits_c
from tta_apm.errors import UserError
from tta_apm.registry import METHODS
from tta_apm.toolbox.precision import computing_in, resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = dict(image_size=32, patch=8, code=32, hidden=(128, 64), lr=1e-3, steps=10)
DIGITS = dict(image_size=32, patch=8, code=64, hidden=(1024, 256))  # of configs/digits_c
Tpt = METHODS.load("tpt")


@pytest.fixture(scope="module")
def images() -> Tensor:
    data = digits_c(data_dir="", frost_dir=None)
    pixels = [data.images(Domain("digits_c", name, 5), np.arange(50))
              for name in ("gaussian_noise", "pixelate")]
    return to_device(np.concatenate(pixels), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 1e-3)])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_apm_against_float64(digits_clip, images, precision, tolerance, pooling):
    """benchmarks/precision.py does the same on 1,000 images."""
    images = images[::4]
    logits = Apm(digits_clip, precision=precision, pooling=pooling, **DIGITS)(images).double()
    exact = Apm(copy.deepcopy(digits_clip).double(), pooling=pooling, **DIGITS)(images.double())
    assert (logits.argmax(-1) == exact.argmax(-1)).all()
    # Logits are cosines with ten directions: where they point is where the features do.
    assert F.cosine_similarity(logits, exact).min() > 1 - tolerance


def test_bfloat16_is_used_and_weights_stay_float32(digits_clip, images):
    methods = {name: Apm(digits_clip, precision=name, **SMALL) for name in ("float32", "bfloat16")}
    logits = {name: method(images[:4]) for name, method in methods.items()}
    assert all(value.dtype == torch.float32 for value in logits.values())
    assert not torch.equal(*logits.values())
    assert all(value.dtype == torch.float32
               for value in methods["bfloat16"].student.initial.values())


def test_precision_does_not_depend_on_the_company(digits_clip, images):
    method = Apm(digits_clip, precision="bfloat16", **SMALL)
    together = method(images[:6])
    alone = torch.cat([method(images[index:index + 1]) for index in range(6)])
    assert (together - alone).abs().max() < 0.05 * together.abs().max()
    assert (together.argmax(-1) == alone.argmax(-1)).all()


def test_a_callers_autocast_changes_nothing(digits_clip, images):
    """Autocast's cache would return weights from before an update."""
    method = Apm(digits_clip, precision="float32", **SMALL)
    expected, answer = method(images[:3]), digits_clip.encode_image(images[:3])
    teacher = copy.copy(digits_clip)
    teacher.encode_image = lambda _: answer  # the teacher is the caller's, the student is not
    method = Apm(teacher, precision="float32", **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        logits = method(images[:3])
    assert F.cosine_similarity(logits.float(), expected).min() > 1 - 1e-4


def test_auto_is_short_on_a_gpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve("auto", "bfloat16", CPU, "apm") == "float32"
    assert resolve("auto", "bfloat16", GPU, "apm") == "bfloat16"
    assert resolve("float32", "bfloat16", GPU, "apm") == "float32"
    with pytest.raises(UserError, match="apm: unknown precision 'bfloat61'.*bfloat16"):
        resolve("bfloat61", "bfloat16", CPU, "apm")


def test_auto_is_no_type_that_a_gpu_emulates(monkeypatch):
    """V100 (7.0) and T4 (7.5) have float16 but no bfloat16."""
    for capability, auto in (((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16"),
                             ((12, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert resolve("auto", "bfloat16", GPU, "apm") == auto
        assert resolve("auto", "float16", GPU, "tpt") == "float16"
        assert resolve("bfloat16", "bfloat16", GPU, "apm") == "bfloat16"  # who asks for it gets it


def test_products_rule_for_their_context_only():
    left = torch.ones(2, 2)
    with computing_in("bfloat16", CPU):
        assert (left @ left).dtype == torch.bfloat16
        with computing_in("float32", CPU):
            assert (left @ left).dtype == torch.float32
    assert (left @ left).dtype == torch.float32


def test_methods_say_what_auto_became(digits_clip):
    assert Apm(digits_clip, **SMALL).resolved == {"precision": "float32"}
    assert Tpt(digits_clip).resolved == {"precision": "float32"}


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.4", reason="no float16 on a CPU before torch 2.4")
def test_tpt_in_float16(digits_clip, images):
    """AdamW's eps cancels the constant factor of the loss exactly."""
    exact = Tpt(copy.deepcopy(digits_clip).double(), num_views=8, selection=0.25)
    logits = exact(images[:12].double())
    for precision, tolerance in (("float32", 1e-4), ("float16", 2e-2)):
        method = Tpt(digits_clip, num_views=8, selection=0.25, precision=precision)
        found = method(images[:12])
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.double(), logits).min() > 1 - tolerance


@pytest.mark.slow
def test_the_record_says_what_auto_became(tmp_path, capsys):
    words = ["--cfg", "cfgs/digits_c/apm.yaml", "NUM_IMAGES", "4", "CORRUPTIONS", "[fog]",
             "OUTPUT_DIR", str(tmp_path), "APM.STEPS"]
    assert cli.main([*words, "1"]) == cli.OK
    file, = find_records(tmp_path / "cells")
    assert load_record(file).hyper_parameters["precision"] == "float32"
    capsys.readouterr()
    assert cli.main([*words, "1"]) == cli.OK  # auto is still the same run
    assert cli.main([*words, "2"]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "STEPS 1, now 2" in error and "PRECISION" not in error
