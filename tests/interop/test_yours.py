"""A benchmark of yours: methods in the loops of docs/hosts/yours.md give what they give here."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch

from places import ROOT
from tta_apm import cli, load_method, load_results

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch):
    """Import one of the examples."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)
    return load


def test_a_plain_loop_counts_what_a_sweep_counts(example, tmp_path, digits_resnet):
    """Under no_grad, three batches of 20; the sweep's stream is one batch, so no state differs."""
    module = example("your_benchmark")
    loader = torch.utils.data.DataLoader(module.your_loader("fog").dataset, batch_size=60)
    found = module.your_accuracy(load_method("norm", digits_resnet), loader)
    assert cli.main(["--cfg", "cfgs/digits_c/source.yaml", "METHODS", "[norm]", "CORRUPTIONS",
                     "[fog]", "SEVERITY", "[5]", "NUM_IMAGES", "60", "BATCH_SIZE", "60",
                     "OUTPUT_DIR", str(tmp_path)]) == 0
    assert found == pytest.approx(1 - load_results(tmp_path).cells.error.item(), abs=1e-6)


def test_setup_of_tents_pattern_resets_and_leaves_the_model_alone(example, images, digits_resnet):
    module = example("tent_setup")
    before = digits_resnet(images)
    model = module.setup_ours(digits_resnet, "tent", lr=0.1)
    with torch.no_grad():
        first, second = model(images), model(images)
        model.reset()
        assert torch.equal(model(images), first) and not torch.equal(second, first)
    assert torch.equal(digits_resnet(images), before)
    assert torch.equal(first, load_method("tent", digits_resnet, lr=0.1)(images))


def test_engines_and_methods_in_each_others_place(example, images, digits_resnet):
    pytest.importorskip("torch_ttt")
    digits_resnet = copy.deepcopy(digits_resnet)  # an engine's train() reaches its network
    from torch_ttt.engine_registry import EngineRegistry
    EngineRegistry._registry.pop("tta_apm", None)
    module = example("torch_ttt_engines")
    engine = module.OurEngine(digits_resnet, load_method("tent", digits_resnet, lr=0.1))
    engine.eval()
    first, loss = engine(images)
    assert torch.equal(first, load_method("tent", digits_resnet, lr=0.1)(images)) and loss == 0
    engine.train()
    assert torch.equal(engine(images)[0], digits_resnet(images))
    method = module.TorchTtt(digits_resnet, name="deyo", lr=0.01)
    seen = []
    for _ in range(2):
        torch.manual_seed(0)  # DeYO shuffles patches
        with torch.no_grad():
            seen.append(method(images[:20]))
    once, again = seen
    assert torch.equal(once, again)  # anew for each batch
    assert not torch.equal(once, digits_resnet(images[:20])) and not once.requires_grad
