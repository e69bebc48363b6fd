"""Episodes: stacked copies adapt as each would alone."""

from __future__ import annotations

import pytest
import torch

from tta_apm.toolbox import episodes


@pytest.mark.parametrize("optimizer", [
    lambda leaves: torch.optim.Adam(leaves, lr=0.1),
    lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9),
], ids=["adam", "sgd"])
def test_a_stack_adapts_as_each_would_alone(optimizer):
    start = {"w": torch.randn(3, 2).double(), "b": torch.randn(3).double()}
    inputs, targets = torch.randn(4, 2).double(), torch.randn(4, 3).double()

    def loss(part):
        def of(weights):
            out = torch.einsum("bij,bj->bi", weights["w"], inputs[part]) + weights["b"]
            return (out - targets[part]).square().sum(-1)
        return of

    together = episodes.adapt(episodes.stack(start, 4), loss(slice(0, 4)), steps=7,
                              optimizer=optimizer)
    for b in range(4):
        alone = episodes.adapt(episodes.stack(start, 1), loss(slice(b, b + 1)), steps=7,
                               optimizer=optimizer)
        for name in start:
            assert torch.allclose(together[name][b], alone[name][0], atol=1e-12)
            assert not torch.equal(together[name][b], start[name])


def test_adapting_works_under_no_grad_and_leaves_no_gradient():
    with torch.no_grad():
        weights = episodes.adapt(
            episodes.stack({"w": torch.ones(2)}, 3), lambda w: w["w"].square().sum(-1), steps=1,
            optimizer=lambda leaves: torch.optim.SGD(leaves, lr=0.25))
    assert torch.equal(weights["w"], torch.full((3, 2), 0.5))
    assert weights["w"].grad is None and not weights["w"].requires_grad


def test_an_images_draw_depends_on_its_pixels_and_the_seed_only():
    images = (torch.rand(5, 3, 8, 8) * 255).round() / 255

    def draws(batch, seed):
        return torch.stack([torch.rand(4, generator=generator)
                            for generator in episodes.image_generators(batch, seed)])

    together = draws(images, 0)
    assert torch.equal(draws(images[3:4], 0)[0], together[3])
    assert torch.equal(draws(images.flip(0), 0), together.flip(0))
    assert torch.equal(draws(images.double(), 0), together)
    assert len(set(together[:, 0].tolist())) == 5
    assert not torch.equal(draws(images, 1), together)


def test_chunks_cover_every_image_once():
    covered = [i for part in episodes.chunks(7, 3) for i in range(7)[part]]
    assert covered == list(range(7))
    assert episodes.chunk_size(10**12, torch.device("cpu")) == 1


def test_what_torch_holds_unused_of_a_gpu_counts_as_free(monkeypatch):
    """Memory in the allocator's cache counts as free; else later methods of a sweep are slower."""
    reserved, allocated = 0, 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 - reserved, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    cuda = torch.device("cuda")
    assert episodes.chunk_size(10, cuda) == 75
    reserved = 800
    assert episodes.chunk_size(10, cuda) == 75
    allocated = 600
    assert episodes.chunk_size(10, cuda) == 30


def test_kept_bytes_are_those_that_a_gradient_needs():
    weight, inputs = torch.ones(5, 3, requires_grad=True), torch.ones(2, 5)
    with torch.no_grad():
        assert episodes.saved_bytes(lambda: inputs @ weight) == inputs.nbytes
    assert episodes.saved_bytes(lambda: (inputs @ weight).exp()) == (10 + 6) * 4
    assert episodes.saved_bytes(lambda: inputs.exp()) == 0
