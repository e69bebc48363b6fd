"""Isolation: whatever a method does to what it shares, no other row has other numbers for it."""

from __future__ import annotations

import copy
import io
import os
import random
import signal
import sys
import textwrap
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tta_apm import cli
from tta_apm.bench.backbone_state import QuickState, backbone_state, changed_parts
from tta_apm.bench.isolation import Guard, IsolationError
from tta_apm.bench.process_state import SETTINGS, ProcessState
from tta_apm.bench.randomness import Randomness, global_state
from tta_apm.bench.records import load_predictions, load_record
from tta_apm.registry import METHODS

# What a method could do to the process; each is undone after the call.
TO_THE_PROCESS = {
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "torch's anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(
        True, warn_only=True),
    "torch's handling of denormal numbers": lambda: torch.set_flush_denormal(True),
    "torch's float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.backends.cudnn.enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic",
                                                          True),
    "torch.backends.mkldnn.enabled": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "torch's math kernels of attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "torch's hooks on all modules": lambda: nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 0),
    "numpy's handling of errors": lambda: np.seterr(all="raise"),
    "the working folder": lambda: os.chdir("/"),
    "the environment (TTA_APM_TEST)": lambda: os.environ.update(TTA_APM_TEST="1"),
    "the environment (HOME)": lambda: os.environ.pop("HOME"),
    "sys.stdout": lambda: setattr(sys, "stdout", io.StringIO()),
    "sys.stderr": lambda: setattr(sys, "stderr", None),
    "a handler of signals (SIGINT)": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
}
if hasattr(torch, "get_autocast_dtype"):
    TO_THE_PROCESS["torch's autocast on cpu"] = lambda: torch.set_autocast_enabled("cpu", True)


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("HOME", os.environ.get("HOME", "/nowhere"))


@pytest.mark.parametrize("name", TO_THE_PROCESS)
def test_what_a_method_sets_of_the_process_is_put_back_and_told(name, environment):
    before = [setting.read() for setting in SETTINGS]
    with pytest.raises(IsolationError) as caught:
        Guard(0).call(TO_THE_PROCESS[name])
    assert f"changed what is not its own: {name}" in str(caught.value)
    assert [setting.read() for setting in SETTINGS] == before


@pytest.mark.parametrize("name", TO_THE_PROCESS)
def test_it_is_put_back_where_the_method_fails_besides(name, environment):
    def deed():
        TO_THE_PROCESS[name]()
        raise KeyError("of a stranger")

    before = [setting.read() for setting in SETTINGS]
    with pytest.raises(IsolationError) as caught:
        Guard(0).call(deed)
    assert isinstance(caught.value.__cause__, KeyError) and name in str(caught.value)
    assert [setting.read() for setting in SETTINGS] == before


def test_a_closed_output_is_told_and_replaced(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(IsolationError, match=r"sys.stdout \(closed\)"):
            Guard(0).call(file.close)
        print("nobody reads this", flush=True)
        sys.stdout.close()


def test_filters_of_warnings_are_put_back_without_a_word():
    Guard(0).call(warnings.simplefilter, "error")
    with warnings.catch_warnings(record=True):
        warnings.warn("no error")


def test_what_was_as_it_is_now_is_no_change():
    state = ProcessState()
    assert state.restore() == []


def draw() -> list[float]:
    return [random.random(), np.random.random(), torch.rand(()).item()]


def test_global_random_numbers_are_a_methods_own_and_begin_at_the_seed():
    outside = Randomness(7)
    with outside:
        before = global_state()
        guard = Guard(seed=3)
        first, second = guard.call(draw), guard.call(draw)
        after = global_state()
    assert before[0] == after[0] and torch.equal(before[2], after[2])
    assert (before[1][1] == after[1][1]).all() and before[1][2] == after[1][2]
    draw()
    again = Guard(seed=3)
    assert [again.call(draw), again.call(draw)] == [first, second]
    again.restart()
    assert again.call(draw) == first != second
    assert Guard(seed=4).call(draw) != first
    assert Guard(seed=2**40).call(draw)  # numpy takes shorter seeds only


# What a method could do to the backbone.

def replace_norm(backbone):
    owner, name = next((module, name) for module in backbone.modules()
                       for name, child in module.named_children()
                       if isinstance(child, nn.BatchNorm2d))
    setattr(owner, name, nn.Identity())


def some_norm(backbone):
    return next(module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))


def first(backbone):
    return next(backbone.parameters())


def swap(weights):
    weights.copy_(weights.roll(1, 0))


TO_THE_CLASSIFIER = {
    "one weight by a hair": lambda net: first(net)[1, 1, 1, 1].mul_(1 + 1e-6),
    "weights that are swapped": lambda net: swap(first(net)),
    "its last weight": lambda net: list(net.parameters())[-1][-1].add_(1),
    "a running mean": lambda net: some_norm(net).running_mean.add_(1e-3),
    "no running statistics": lambda net: setattr(some_norm(net), "running_mean", None),
    "training mode": lambda net: net.train(),
    "training mode of one layer": lambda net: some_norm(net).train(),
    "a forward hook": lambda net: net.register_forward_hook(lambda *args: args[-1] * 0),
    "a hook on a weight": lambda net: (first(net).requires_grad_().register_hook(print),
                                       first(net).requires_grad_(False)),
    "gradients": lambda net: net.requires_grad_(True),
    "a gradient": lambda net: setattr(first(net), "grad", torch.ones_like(first(net))),
    "half precision": lambda net: net.half(),
    "another layout": lambda net: net.to(memory_format=torch.contiguous_format),
    "another layer": replace_norm,
    "a forward of its own": lambda net: setattr(net, "forward", lambda images: images),
    "a plain number": lambda net: setattr(some_norm(net), "momentum", 0.5),
    "its name": lambda net: setattr(net, "name", "a better one"),
    "what its weights are": lambda net: setattr(net, "weights", "better ones"),
    "its mean": lambda net: net.mean.add_(0.1),
    "its size": lambda net: setattr(net, "image_size", 16),
}
TO_THE_CLIP = {
    "text features": lambda clip: clip.text_features.copy_(clip.text_features.roll(1, 0)),
    "other text features": lambda clip: setattr(clip, "text_features", 2 * clip.text_features),
    "logit scale": lambda clip: setattr(clip, "logit_scale", 1.0),
    "class names": lambda clip: setattr(clip, "class_names", clip.class_names[1:]),
    "the model's logit scale": lambda clip: clip.model.logit_scale.fill_(0),
}
TO_THE_BACKBONE = {**TO_THE_CLASSIFIER, **TO_THE_CLIP}


@pytest.fixture
def own(digits_resnet, digits_clip):
    """A copy of the backbone that a deed is done to."""
    return lambda deed: copy.deepcopy(digits_clip if deed in TO_THE_CLIP else digits_resnet)


@pytest.mark.slow
@pytest.mark.parametrize("deed", TO_THE_BACKBONE)
def test_what_a_method_does_to_the_backbone_is_told(own, deed):
    backbone = own(deed)
    guard = Guard(0, backbone)
    with torch.no_grad():
        backbone(torch.zeros(2, 3, 32, 32))
        guard.check()
        guard.call(TO_THE_BACKBONE[deed], backbone)
    with pytest.raises(IsolationError, match=r"what is not its own: the shared backbone \("):
        guard.check()


@pytest.mark.parametrize("deed", [deed for deed in TO_THE_BACKBONE if deed != "a gradient"])
def test_a_quick_look_sees_what_could_change_an_answer(own, deed):
    backbone = own(deed)
    with torch.no_grad():
        backbone(torch.zeros(2, 3, 32, 32))
        quick = QuickState(backbone)
        assert quick.is_same()
        TO_THE_BACKBONE[deed](backbone)
    assert not quick.is_same()


def test_other_objects_of_the_same_value_are_no_change(digits_clip):
    backbone = copy.deepcopy(digits_clip)
    quick = QuickState(backbone)
    backbone.class_names = tuple(list(backbone.class_names))
    backbone._forward_hooks[1] = print
    assert not quick.is_same()
    del backbone._forward_hooks[1]
    assert quick.is_same()


def test_its_parts_are_named(own):
    backbone = own("training mode")
    before = backbone_state(backbone)
    some_norm(backbone).momentum = 0.5
    with torch.no_grad():
        backbone.mean.add_(1)
    changed = changed_parts(before, backbone_state(backbone))
    assert "mean" in changed and len(changed) == 2 and changed[1].endswith(".momentum")


def test_a_thread_that_would_keep_the_process_alive_is_told():
    stop = threading.Event()
    guard = Guard(0)
    guard.call(lambda: threading.Thread(target=stop.wait, name="loiterer").start())
    with pytest.raises(IsolationError, match="loiterer was left running"):
        guard.check()
    stop.set()


def test_executors_and_daemons_end_with_the_process():
    stop = threading.Event()
    guard = Guard(0)
    pool = ThreadPoolExecutor(1)
    guard.call(lambda: pool.submit(int).result())
    guard.call(lambda: threading.Thread(target=stop.wait, daemon=True).start())
    guard.check()
    stop.set()


# Sweeps

STRANGERS = """
    import copy, os, random, sys
    import numpy as np
    import torch
    import test_isolation
    from tta_apm.method import Method, register
    from tta_apm_baselines.tent import Tent

    class Stranger(Method):
        needs, scope = "classifier", "image"

        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
        def forward(self, images):
            return self.backbone(images)
        def reset(self):
            pass

    class Spoiler(Stranger):
        needs, scope = "classifier", "image"

        def __init__(self, backbone, *, deed=0, at="forward"):
            super().__init__(backbone)
            self.deed, self.at = deed, at
            self.do("init")
        def forward(self, images):
            logits = self.backbone(images)
            self.do("forward", images)
            return logits
        def reset(self):
            self.do("reset")
        def do(self, at, images=None):
            if at == self.at:
                test_isolation.do(self.deed, self.backbone, images)

    register("spoiler")(Spoiler)

    @register("clip_spoiler")
    class ClipSpoiler(Spoiler):
        needs, scope = "clip", "image"

    @register("tent_without_a_copy")
    class TentWithoutACopy(Tent):
        needs, scope, survives = "classifier", "stream", "weights"
        def __init__(self, backbone):
            kept, copy.deepcopy = copy.deepcopy, lambda network: network
            try:
                super().__init__(backbone)
            finally:
                copy.deepcopy = kept

    @register("noisy")
    class Noisy(Stranger):
        needs, scope = "classifier", "stream"
        survives = "random state"
        def forward(self, images):
            noise = torch.rand(()).item() + np.random.random() + random.random()
            return self.backbone(images) + noise * torch.randn(len(images), 10)

    class Text(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    ENDS = {
        "exits": lambda: sys.exit(),
        "exits_with_3": lambda: sys.exit(3),
        "closes_a_generator": lambda: (_ for _ in ()).throw(GeneratorExit()),
        "stops": lambda: next(iter(())),
        "has_no_text": lambda: (_ for _ in ()).throw(Text()),
        "interrupts": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
        "another": lambda: (_ for _ in ()).throw(BaseException("other")),
    }

    @register("ends")
    class Ends(Stranger):
        needs, scope = "classifier", "image"
        def __init__(self, backbone, *, how=""):
            super().__init__(backbone)
            self.how = how
        def forward(self, images):
            ENDS[self.how]()

    TELLS = {
        "resolved_tensor": ("resolved", {"lr": torch.ones(())}),
        "resolved_nan": ("resolved", {"lr": float("nan")}),
        "resolved_inf": ("resolved", {"lr": [1.0, float("inf")]}),
        "resolved_list": ("resolved", ["lr"]),
        "resolved_key": ("resolved", {1: 2}),
        "details_list": ("details", ["cosine"]),
    }

    @register("tells")
    class Tells(Stranger):
        needs, scope = "classifier", "image"
        def __init__(self, backbone, *, what=""):
            super().__init__(backbone)
            self.what = what
        def forward(self, images):
            if self.what == "details_nan":
                self.details = {"cosine": torch.full((len(images),), float("nan"))}
            else:
                name, value = TELLS[self.what]
                setattr(self, name, value)
            return self.backbone(images)
"""


# Of all kinds, by the number that a config gives.
DEEDS = [*TO_THE_BACKBONE, "images", *TO_THE_PROCESS]


def do(deed: int, backbone, images) -> None:
    """For the methods of STRANGERS."""
    name = DEEDS[deed]
    if name in TO_THE_PROCESS:
        TO_THE_PROCESS[name]()
        return
    with torch.no_grad():
        if name == "images":
            images.add_(1e-6)
        else:
            TO_THE_BACKBONE[name](backbone)


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Run rows of STRANGERS and ours; gives exit code, what was printed, rows' predictions."""
    monkeypatch.setattr(METHODS, "_registered", dict(METHODS._registered))
    file = tmp_path / "strangers.py"
    file.write_text(textwrap.dedent(STRANGERS))

    def sweep(rows: list[str], folder: str, *overrides: str):
        config = tmp_path / f"{folder}.yaml"
        config.write_text(f"METHODS: {rows}\nPLUGINS: [{file}]\nCORRUPTIONS: [fog, contrast]\n"
                          "NUM_IMAGES: 12\nBATCH_SIZE: 6\nSEVERITY: [5]\nSEEDS: [1]\n"
                          f"OUTPUT_DIR: {tmp_path / folder}\n")
        code = cli.main(["--cfg", str(config), *overrides])
        found: dict[str, list] = {}
        for record in sorted((tmp_path / folder).rglob("cells/**/*.json")):
            made = load_record(record)
            predictions = load_predictions(record, made)
            found.setdefault(made.row, []).append(
                (str(record.name), made.backbone, predictions.prediction.tobytes(),
                 predictions.confidence.tobytes()))
        return code, capsys.readouterr(), found
    return sweep


OURS = ["source", "norm", "tent", "clip_zero_shot", "noisy",
        "apm HIDDEN [16] STEPS 2 IMAGE_SIZE 32 PATCH 8 CODE 16"]


@pytest.fixture
def alone(sweep):
    """The rows of OURS, each run alone."""
    found = {}
    for index, row in enumerate(OURS):
        code, _, rows = sweep([row], f"alone{index}")
        assert code == cli.OK
        found |= rows
    assert list(map(len, found.values())) == [2] * len(OURS)
    return found


@pytest.mark.slow
def test_tent_without_a_copy_fails_by_name_and_changes_no_other_row(sweep, alone):
    code, printed, found = sweep(["tent_without_a_copy", *OURS], "company")
    assert code == cli.FAILED_CELLS
    assert found == alone
    assert "FAILED: changed what is not its own: the shared backbone (" in printed.out
    assert "tent_without_a_copy/fog-5-seed1" in printed.err
    assert "tent_without_a_copy/contrast-5-seed1" in printed.err


PLACES = ("init", "reset", "forward")


@pytest.mark.slow
@pytest.mark.parametrize("at", PLACES)
def test_whatever_is_done_changes_no_other_row(sweep, alone, environment, at):
    """A third of the deeds each, all in rows of their own, which come before rows of ours."""
    deeds = {index: deed for index, deed in enumerate(DEEDS)
             if at == ("forward" if deed == "images" else PLACES[index % 3])}
    rows = [f"{'clip_' if deed in TO_THE_CLIP else ''}spoiler DEED {index} AT {at}"
            for index, deed in deeds.items()]
    code, printed, found = sweep([*rows, *OURS], "company")
    assert code == cli.FAILED_CELLS, printed.err
    assert found == alone
    lines = [line for line in printed.out.splitlines() if "FAILED: " in line]
    assert len(lines) == 2 * len(rows)
    for row, deed, told in zip(rows, deeds.values(), lines[::2]):
        assert told.startswith(row) and "FAILED: changed what is not its own: " in told
        what = ("the shared backbone (" if deed in TO_THE_BACKBONE else
                "the images that it was given" if deed == "images" else deed)
        assert what in told
    if "no running statistics" in deeds.values():
        assert ("running_mean); then it failed: RuntimeError: running_mean must be defined in "
                "evaluation mode (functional.py:") in printed.out


@pytest.mark.slow
@pytest.mark.parametrize("how, why", [
    ("exits", "SystemExit: no message (strangers.py:"),
    ("exits_with_3", "SystemExit: 3 (strangers.py:"),
    ("closes_a_generator", "GeneratorExit: no message ("),
    ("stops", "StopIteration: no message ("),
    ("has_no_text", "Text: its message cannot be shown ("),
    ("another", "BaseException: other (strangers.py:")])
def test_however_a_method_ends_its_cells_alone_fail(sweep, how, why):
    code, printed, found = sweep([f"ends HOW {how}", "source"], "ends")
    assert code == cli.FAILED_CELLS
    assert list(found) == ["source"]
    assert printed.out.count("FAILED: " + why) == 2


def test_an_interrupt_is_none_of_a_methods_faults(sweep):
    code, printed, found = sweep(["ends HOW interrupts", "source"], "ends")
    assert code == cli.INTERRUPTED and not found


@pytest.mark.slow
@pytest.mark.parametrize("what, why", [
    ("resolved_tensor", "has `resolved` 'lr' that a record cannot hold"),
    ("resolved_nan", "has `resolved` 'lr' that a record cannot hold"),
    ("resolved_inf", "has `resolved` 'lr' that a record cannot hold"),
    ("resolved_key", "has `resolved` 1 that a record cannot hold"),
    ("resolved_list", "has `resolved` of type list instead of a dict"),
    ("details_list", "has details of type list instead of a dict"),
    ("details_nan", "has details 'cosine' that are not finite")])
def test_what_no_record_holds_fails_its_cells_alone(sweep, tmp_path, what, why):
    code, printed, found = sweep([f"tells WHAT {what}", "source"], "tells")
    assert code == cli.FAILED_CELLS
    assert list(found) == ["source"]
    assert printed.out.count("FAILED: " + why) == 2
    assert len(list((tmp_path / "tells").rglob("*.npz"))) == 2  # none without a record


@pytest.mark.slow
def test_rows_give_the_same_in_any_order(sweep, alone):
    code, _, found = sweep(OURS[::-1], "reversed")
    assert code == cli.OK and found == alone


@pytest.mark.slow
def test_what_a_method_draws_depends_on_the_seed_and_on_no_cell_before(sweep, alone):
    _, _, found = sweep(["noisy"], "contrast", "CORRUPTIONS", "[contrast]")
    assert found["noisy"] == [cell for cell in alone["noisy"] if cell[0].startswith("contrast")]
    _, _, other = sweep(["noisy"], "other", "SEEDS", "[2]")
    assert {cell[3] for cell in other["noisy"]}.isdisjoint(cell[3] for cell in alone["noisy"])
