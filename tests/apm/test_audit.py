"""The audit: methods whose optimiser survives from image to image."""

from __future__ import annotations

import pytest
import torch

from small_methods import NAMES
from tta_apm import cli, config
from tta_apm.apm.method import Apm
from tta_apm.apm.surviving import ApmSurviving
from tta_apm.method import Method
from tta_apm.registry import METHODS
from tta_apm.toolbox.episodes import adapt, stack
from tta_apm.toolbox.surviving import SurvivingOptimizer

SMALL = dict(image_size=32, patch=8, code=32, hidden=(64, 32), steps=5, lr=3e-3)
METHODS_AND_OPTIONS = {
    "apm": SMALL,
    "memo": dict(num_views=4, optimizer="adamw", lr=1e-3),
    "tpt": dict(num_views=10),
    "ttt_mae": dict(steps=3, masks=4),
}
MODELS = """\
DATASET: digits_c
CORRUPTIONS: [contrast]
SEVERITY: [5]
NUM_IMAGES: 20
BATCH_SIZE: 10
SEEDS: [0]
APM: &apm {IMAGE_SIZE: 32, PATCH: 8, CODE: 32, HIDDEN: [64, 32], STEPS: 3, LR: 0.01}
APM_SURVIVING: *apm
METHODS: [apm, apm_surviving]
"""


@pytest.fixture(params=METHODS_AND_OPTIONS)
def pair(request, backbones):
    """An episodic method and its surviving variant."""
    name, options = request.param, METHODS_AND_OPTIONS[request.param]
    fresh, surviving = METHODS.load(name), METHODS.load(f"{name}_surviving")
    backbone = backbones[fresh.needs]
    return fresh(backbone, **options), surviving(backbone, **options)


@pytest.mark.slow
def test_reset_before_each_image_it_is_the_fresh_method(pair, digits_test):
    fresh, surviving = pair
    images = digits_test[0][:4]
    expected = fresh(images)
    for image, logits in zip(images.split(1), expected):
        surviving.reset()
        torch.testing.assert_close(surviving(image)[0], logits, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_the_images_before_change_the_result(pair, digits_test):
    fresh, surviving = pair
    images = digits_test[0][:4]
    forward = surviving(images)
    surviving.reset()
    backward = surviving(images.flip(0)).flip(0)
    assert not torch.allclose(forward, backward, atol=1e-3)
    assert torch.allclose(fresh(images), fresh(images.flip(0)).flip(0), atol=1e-3)


@pytest.mark.slow
def test_batches_and_reset_make_no_difference_to_a_stream(pair, digits_test):
    _, surviving = pair
    images = digits_test[0][:5]
    together = surviving(images)
    surviving.reset()
    assert torch.equal(torch.cat([surviving(part) for part in images.split(2)]), together)


class Toy(Method):
    """Fits three weights, sampled for each image, to the image's mean colour."""

    def forward(self, images):
        colours = images.mean((2, 3))
        return adapt(stack({"w": torch.zeros(3)}, len(images)),
                     lambda stacked: (stacked["w"] - colours).square().sum(-1),
                     steps=5, optimizer=self.make_optimizer)["w"]

    def make_optimizer(self, leaves):
        return torch.optim.Adam(leaves, lr=0.1)

    def reset(self):
        pass


class ToySurviving(SurvivingOptimizer, Toy):
    pass


def test_it_is_one_adam_over_the_stream():
    """Against a plain loop with new weights for every image and one optimiser for all."""
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([weights], lr=0.1)
    expected = []
    for colour in images.mean((2, 3)):
        with torch.no_grad():
            weights.zero_()
        for _ in range(5):
            adam.zero_grad()
            (weights - colour).square().sum().backward()
            adam.step()
        expected.append(weights.detach().clone())
    torch.testing.assert_close(ToySurviving()(images), torch.stack(expected))
    assert not torch.allclose(Toy()(images), torch.stack(expected), atol=1e-3)


def test_details_are_those_of_every_image(digits_clip, digits_test):
    images = digits_test[0][:5]
    fresh, surviving = Apm(digits_clip, **SMALL), ApmSurviving(digits_clip, **SMALL)
    fresh(images), surviving(images)
    assert surviving.details.keys() == fresh.details.keys()
    assert torch.equal(surviving.details["teacher_prediction"], fresh.details["teacher_prediction"])
    assert surviving.details["cosine"].shape == (5,)


@pytest.mark.parametrize("fresh", METHODS_AND_OPTIONS)
def test_both_take_the_same_settings(fresh):
    settings = [METHODS.signature(name).settings for name in (fresh, f"{fresh}_surviving")]
    assert settings[0] == settings[1] != {}


def remembers(method: Method, images: torch.Tensor) -> bool:
    """Whether earlier images change the logits of later ones."""
    method.reset()
    with torch.no_grad():
        fresh = method(images[:4])
        method.reset()
        for part in images[4:].split(4):
            method(part)
        return not torch.equal(method(images[:4]), fresh)


def test_the_audit_sees_an_optimiser_that_survives():
    images = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert remembers(ToySurviving(), images) and not remembers(Toy(), images)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_method_survives_by_stealth(name, make_method, digits_test):
    """Methods carry state between images if and only if they declare it."""
    signature = METHODS.signature(name)
    declared = signature.attributes.get("survives", "")
    assert remembers(make_method(name), digits_test[0][:12]) == (signature.scope == "stream")
    assert bool(declared) == (signature.scope == "stream")
    assert (declared == "optimiser") == (name.removesuffix("_surviving") in METHODS_AND_OPTIONS
                                         and name.endswith("_surviving"))


@pytest.mark.parametrize("name", ["shuffled", "sorted", "others_shuffled", "others_sorted"])
def test_the_configs_pair_fresh_and_surviving(name):
    cfg = config.load(f"cfgs/audit/{name}.yaml")
    rows = config.rows(cfg)
    assert cfg.ORDER == name.split("_")[-1]
    for fresh, surviving in zip(rows[::2], rows[1::2]):
        assert surviving.method == f"{fresh.method}_surviving"
        assert surviving.hyper_parameters == fresh.hyper_parameters
        assert (fresh.survives, surviving.survives) == ("nothing", "optimiser")


@pytest.mark.slow
def test_both_orders_stand_in_one_table_and_each_row_says_which(tmp_path, capsys):
    file = tmp_path / "audit.yaml"
    file.write_text(MODELS + f"OUTPUT_DIR: {tmp_path / 'out'}\n")
    for order in ("shuffled", "sorted"):
        assert cli.main(["--cfg", str(file), "ORDER", order]) == cli.OK
    table = (tmp_path / "out/table.md").read_text()
    for survives in ("image · survives: nothing", "stream · survives: optimiser"):
        for order in ("shuffled", "sorted"):
            assert f"{survives} · reset_each_domain · {order}" in table
    fresh = [line.split(",")[:2] for line in (tmp_path / "out/table.csv").read_text().splitlines()
             if line.startswith("apm,")]
    assert len(fresh) == 2 and fresh[0] == fresh[1]  # a fresh optimiser knows no order
