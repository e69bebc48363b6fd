"""tensor_cache: one process computes, the others wait for its file."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
import torch
from tta_apm_baselines.eata import Eata
from tta_apm_baselines.rmt import Rmt

from tta_apm.backbones import libraries
from tta_apm.backbones import tensor_cache as module
from tta_apm.backbones.tensor_cache import folder_of_method, load_or_compute, precomputed
from tta_apm.errors import UserError

RMT = dict(num_warm_up=96, warm_up_batch_size=32)


def numbers() -> dict[str, torch.Tensor]:
    return {"a 1 b.c": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
            "none": torch.zeros(0), "one": torch.tensor(1.5, dtype=torch.float64)}


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first)


@pytest.mark.slow
def test_whoever_asks_meanwhile_waits_for_the_first(tmp_path):
    calls, found = [], []

    def work():
        calls.append(threading.get_ident())
        time.sleep(0.3)
        return numbers()

    def ask():
        found.append(load_or_compute(tmp_path / "folder/kept.safetensors", work))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(found) == 4
    assert all(equal(one, numbers()) for one in found)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept.safetensors"]


def test_a_full_disk_is_no_hindrance(tmp_path, monkeypatch):
    def refuse(*args, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("tta_apm.lock._try", refuse)
    monkeypatch.setattr(module, "atomic_path", refuse)
    assert equal(load_or_compute(tmp_path / "kept.safetensors", numbers), numbers())


def test_an_error_leaves_nothing_and_the_next_one_works_it_out(tmp_path):
    def fail():
        raise UserError("no luck")
    with pytest.raises(UserError, match="no luck"):
        load_or_compute(tmp_path / "kept.safetensors", fail)
    assert not list(tmp_path.iterdir())
    assert equal(load_or_compute(tmp_path / "kept.safetensors", numbers), numbers())


def test_nothing_is_kept_outside_of_a_sweep():
    calls = []
    for _ in range(2):
        precomputed("numbers", lambda: calls.append(None) or numbers())
    assert len(calls) == 2


@pytest.fixture
def in_a_sweep(tmp_path):
    token = folder_of_method.set(tmp_path)
    yield
    folder_of_method.reset(token)


@pytest.mark.slow
@pytest.mark.parametrize("make, keywords", [
    (Rmt, dict(**RMT)), (Rmt, dict(**RMT, optimizer="sgd")), (Rmt, dict(**RMT, lambda_contrast=0.)),
    (Rmt, dict(num_warm_up=0, warm_up_batch_size=32)),
    (Eata, dict(diversity_margin=0.4, num_fisher_images=64))])
def test_a_method_set_up_from_the_file_gives_the_same_bits(
        digits_resnet, digits_source, images, in_a_sweep, tmp_path, make, keywords):
    token = folder_of_method.set(None)
    plain = make(digits_resnet, source=digits_source, **keywords)
    folder_of_method.reset(token)
    first = make(digits_resnet, source=digits_source, **keywords)
    file, = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    second = make(digits_resnet, source=digits_source, **keywords)
    assert file.stat().st_mtime_ns == before
    for _ in range(2):
        for batch in images[:48].split(16):
            logits = plain(batch)
            assert torch.equal(first(batch), logits) and torch.equal(second(batch), logits)
        for method in (plain, first, second):
            method.reset()


@pytest.mark.slow
def test_one_process_at_a_time_downloads(tmp_path):
    """A file of robustbench exists as soon as its download begins."""
    file = tmp_path / "models/net.pt"
    found = []

    def load():
        if not file.exists():
            file.write_text("half")
            time.sleep(0.3)
            file.write_text("whole")
        return found.append(file.read_text())

    threads = [threading.Thread(target=libraries.download, args=(load, "net", file))
               for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["whole"] * 3
