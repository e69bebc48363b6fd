"""The loops of docs/hosts/yours.md: methods have the same predictions as in a sweep."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch

from places import ROOT
from tta_apm import cli, load_method, load_results
from tta_apm.errors import UserError
from tta_apm.registry import METHODS

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch):
    """Import one of the examples."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)
    return load


@pytest.fixture
def torch_ttt_engines(example, monkeypatch):
    """Import the example, whose engine and method are registered in this test only."""
    pytest.importorskip("torch_ttt")
    from torch_ttt.engine_registry import EngineRegistry
    # Without those of the example: another test may have imported it.
    monkeypatch.setattr(EngineRegistry, "_registry", {
        name: engine for name, engine in EngineRegistry._registry.items() if name != "tta_apm"})
    monkeypatch.setattr(METHODS, "_registered", {
        name: make for name, make in METHODS._registered.items() if name != "torch_ttt"})
    return example("torch_ttt_engines")


def test_a_plain_loop_counts_what_a_sweep_counts(example, tmp_path, digits_resnet):
    """Under no_grad, three batches of 20; the sweep's stream is one batch, so states are equal."""
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


def test_engines_and_methods_in_each_others_place(torch_ttt_engines, images, digits_resnet):
    module = torch_ttt_engines
    digits_resnet = copy.deepcopy(digits_resnet)  # an engine's train() reaches its network
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


@pytest.mark.slow
def test_the_docs_say_of_each_engine_what_comes_of_it(torch_ttt_engines, images, digits_resnet):
    found = torch_ttt_engines.engines(digits_resnet, images[:8])
    assert {"tent", "actmad", "masked_ttt"} <= found.keys()
    table = "".join(f"| {name} | {said} |\n" for name, said in found.items())
    assert table in (ROOT / "docs/hosts/yours.md").read_text(encoding="utf-8")


def test_an_engine_that_wants_more_is_refused_in_a_sentence(torch_ttt_engines, digits_resnet):
    with pytest.raises(UserError, match="actmad wants LAYER, the name of one of the network's"):
        torch_ttt_engines.TorchTtt(digits_resnet, name="actmad")
    with pytest.raises(UserError, match="name 'tant': did you mean 'tent'?"):
        torch_ttt_engines.TorchTtt(digits_resnet, name="tant")
