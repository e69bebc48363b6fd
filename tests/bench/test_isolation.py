"""Isolation: whatever a method does to what it shares, no other row has other numbers for it."""

from __future__ import annotations

import copy
import random
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tampering import TO_THE_BACKBONE, TO_THE_CLIP, TO_THE_PROCESS, some_norm
from tta_apm.bench.backbone_state import QuickState, backbone_state, changed_parts
from tta_apm.bench.isolation import Guard, IsolationError
from tta_apm.bench.process_state import SETTINGS, ProcessState
from tta_apm.bench.randomness import Randomness, global_state


@pytest.mark.parametrize("name", TO_THE_PROCESS)
def test_what_a_method_sets_of_the_process_is_put_back_and_told(name, environment):
    before = [setting.read() for setting in SETTINGS]
    with pytest.raises(IsolationError) as caught:
        Guard(0).call(TO_THE_PROCESS[name])
    assert f"changed what is not its own: {name}" in str(caught.value)
    assert [setting.read() for setting in SETTINGS] == before


@pytest.mark.parametrize("name", TO_THE_PROCESS)
def test_it_is_put_back_where_the_method_fails_besides(name, environment):
    def change():
        TO_THE_PROCESS[name]()
        raise KeyError("of a stranger")

    before = [setting.read() for setting in SETTINGS]
    with pytest.raises(IsolationError) as caught:
        Guard(0).call(change)
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


@pytest.fixture
def own(digits_resnet, digits_clip):
    """A copy of the backbone that a change is made to."""
    return lambda change: copy.deepcopy(digits_clip if change in TO_THE_CLIP else digits_resnet)


@pytest.mark.slow
@pytest.mark.parametrize("change", TO_THE_BACKBONE)
def test_what_a_method_does_to_the_backbone_is_told(own, change):
    backbone = own(change)
    guard = Guard(0, backbone)
    with torch.no_grad():
        backbone(torch.zeros(2, 3, 32, 32))
        guard.check()
        guard.call(TO_THE_BACKBONE[change], backbone)
    with pytest.raises(IsolationError, match=r"what is not its own: the shared backbone \("):
        guard.check()


@pytest.mark.parametrize("change", [change for change in TO_THE_BACKBONE if change != "a gradient"])
def test_a_quick_look_sees_what_could_change_an_answer(own, change):
    backbone = own(change)
    with torch.no_grad():
        backbone(torch.zeros(2, 3, 32, 32))
        quick = QuickState(backbone)
        assert quick.is_same()
        TO_THE_BACKBONE[change](backbone)
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
