"""Our methods in benchmark-tta, by its stand-in."""

from __future__ import annotations

from functools import partial

import pytest

from host_runs import DOMAINS, OUR_CLIP, SMALL, SMALL_PAIRS, standin
from tta_apm.apm.method import Apm

pytestmark = pytest.mark.usefixtures("hosts_of_digits")


def in_benchmark_tta(in_host, *words: str) -> dict:
    return in_host("benchmark-tta", "--cfg", "cfgs/source.yaml", *words)


@pytest.mark.slow
def test_benchmark_tta_hands_apm_images_that_are_not_normalised(in_host, digits_clip, tmp_path):
    (tmp_path / "CIFAR-10-C").mkdir()
    for name in ("labels", "fog", "snow"):
        (tmp_path / f"CIFAR-10-C/{name}.npy").touch()
    found = in_benchmark_tta(in_host, "MODEL.ADAPTATION", "apm", *OUR_CLIP, *SMALL_PAIRS,
                             "CORRUPTION.DATASET", "cifar10_c", "OUTPUT", "mine",
                             "DATA_DIR", str(tmp_path))
    (data,) = standin("benchmark_tta", "src.data.data")
    method = Apm(digits_clip, **SMALL, seed=1)
    for name in DOMAINS:
        images = data.images_of(name[:-1], int(name[-1]))
        assert found["predictions"][name] == method(images).argmax(1).tolist(), name
    assert found["calls"] == ["reset", 8, 8, 1, 8, 8, 1] * 2
    assert found["output"] == "mine"  # of the pair; the host made mine/online_evaluation


def test_benchmark_ttas_normalisation_moves_into_the_backbone(in_host):
    words = ["CORRUPTION.DATASET", "imagenet_c"]
    theirs = in_benchmark_tta(in_host, "MODEL.ADAPTATION", "source", *words)
    ours = in_benchmark_tta(in_host, "MODEL.ADAPTATION", "tta_apm_source", *words)
    assert ours["predictions"] == theirs["predictions"]
    assert theirs["calls"][0] == "not resetting" and ours["calls"][0] == "reset"


def test_benchmark_tta_tells_what_is_not_there(refused, tmp_path):
    said = partial(refused, "benchmark-tta", "--cfg", "cfgs/source.yaml")

    assert "there is no folder nowhere in" in said("DATA_DIR", "nowhere")
    assert "did you mean 'tta_apm_tent'?" in said("MODEL.ADAPTATION", "tta_apm_tant")
    (tmp_path / "CIFAR-10-C").mkdir()
    (tmp_path / "CIFAR-10-C/labels.npy").touch()
    assert f"there is no file {tmp_path}/CIFAR-10-C/fog.npy" in said(
        "DATA_DIR", str(tmp_path), "CORRUPTION.DATASET", "cifar10_c")
