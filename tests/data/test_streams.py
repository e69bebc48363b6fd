"""Streams and settings: the images and their order."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from tta_apm.data.dataset import Clean, Domain
from tta_apm.data.streams import Stream, domains, prefetched, schedule
from tta_apm.errors import UserError

CLEAN, FOG, SNOW = Domain("toy", "clean", 0), Domain("toy", "fog", 5), Domain("toy", "snow", 5)


class Toy(Clean):
    """A data set in which a pixel encodes image and domain."""

    def images(self, domain, indices):
        return self.pixels[indices] + np.uint8(60 * ("clean", "fog", "snow").index(
            domain.corruption))


@pytest.fixture
def toy():
    pixels = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1).repeat(3, axis=3)
    return Toy("toy", pixels, np.arange(60) // 20, ["a", "b", "c"], "single")


def stream(toy, wanted=(CLEAN,), **keywords):
    return Stream(toy, wanted, **{**dict(num_images=-1, batch_size=16, seed=0), **keywords})


def test_every_image_once_and_no_labels(toy):
    batches = list(stream(toy))
    assert [len(batch.indices) for batch in batches] == [16, 16, 16, 12]
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices) == list(range(60)) and list(indices) != list(range(60))
    for batch in batches:
        assert (batch.images[:, 0, 0, 0] == batch.indices).all()
        assert batch._fields == ("images", "indices")


def test_domains_share_an_order_that_follows_the_seed(toy):
    assert (stream(toy).indices == stream(toy, [FOG]).indices).all()
    assert (stream(toy).indices != stream(toy, seed=1).indices).any()


def test_the_first_images_only(toy):
    assert sorted(stream(toy, num_images=7).indices) == list(range(7))
    with pytest.raises(UserError, match="toy has 60 images"):
        stream(toy, num_images=61)


@pytest.mark.parametrize("count, size, sizes", [
    (33, 16, [16, 17]), (17, 16, [17]), (3, 1, [1, 1, 1]), (1, 16, [1]), (34, 16, [16, 16, 2])])
def test_a_lone_last_image_joins_the_batch_before(toy, count, size, sizes):
    batches = stream(toy, num_images=count, batch_size=size)
    assert [len(batch.indices) for batch in batches] == sizes


def test_mixed_domains_bring_each_image_of_each_domain(toy):
    seen = []
    mixed = stream(toy, [CLEAN, FOG, SNOW])
    for batch in mixed:
        domain_indices = mixed.domain_indices[len(seen):len(seen) + len(batch.indices)]
        assert (batch.images[:, 0, 0, 0] == batch.indices + 60 * domain_indices).all()
        assert len(set(domain_indices)) > 1
        seen += list(zip(domain_indices, batch.indices))
    assert sorted(seen) == [(d, i) for d in range(3) for i in range(60)]


def test_sorted_is_by_class_and_shuffled_within(toy):
    labels = toy.labels[stream(toy, order="sorted").indices]
    assert (np.diff(labels) >= 0).all()
    assert (np.diff(stream(toy, order="sorted").indices[:20]) != 1).any()


def test_dirichlet_correlates_classes_the_more_the_smaller(toy):
    def repeats(**keywords):
        counts = []
        for seed in range(20):
            indices = stream(toy, seed=seed, **keywords).indices
            assert sorted(indices) == list(range(60))
            counts.append((np.diff(toy.labels[indices]) == 0).mean())
        return np.mean(counts)
    shuffled = repeats()
    assert shuffled < 0.4 < repeats(order="dirichlet", concentration=0.01)
    strong, weak = (repeats(order="dirichlet", concentration=c) for c in (0.01, 100.0))
    assert strong > weak > shuffled


def test_domains_go_severity_by_severity():
    assert [str(domain) for domain in domains("toy", ["fog", "snow"], [0, 3, 5])] == [
        "clean", "fog-3", "snow-3", "fog-5", "snow-5"]


def test_schedules_of_the_settings():
    wanted = domains("toy", ["fog", "snow"], [1, 3, 5])

    def names(setting):
        return [" ".join(map(str, stream)) for stream in schedule(setting, wanted)]
    each = ["fog-1", "snow-1", "fog-3", "snow-3", "fog-5", "snow-5"]
    assert names("reset_each_domain") == names("continual") == each
    assert names("gradual") == ["fog-1", "fog-3", "fog-5", "fog-3", "fog-1",
                                "snow-1", "snow-3", "snow-5", "snow-3", "snow-1"]
    assert names("mixed_domains") == [" ".join(each)]


# Prefetching

def test_prefetched_batches_are_those_of_the_stream(toy):
    for ahead in (1, 2, 9):
        pairs = list(zip(stream(toy, [CLEAN, FOG]), prefetched(stream(toy, [CLEAN, FOG]), ahead),
                         strict=True))
        assert all((a == b).all() for pair in pairs for a, b in zip(*pair))


def test_the_next_items_are_fetched_while_one_is_in_use_and_no_more():
    fetched, let_on = [], threading.Event()

    def items():
        for item in range(6):
            fetched.append(item)
            if item == 3:
                let_on.set()
            yield item

    slow = prefetched(items(), ahead=3)
    assert next(slow) == 0
    assert let_on.wait(20)  # 1, 2 and 3 are fetched before they are requested
    assert fetched == [0, 1, 2, 3]
    assert list(slow) == [1, 2, 3, 4, 5]


def test_an_error_comes_as_it_is_and_in_its_turn():
    error = UserError("cannot read the image x.jpg")

    def items():
        yield from (0, 1)
        raise error

    got = []
    with pytest.raises(UserError) as caught:
        for item in prefetched(items(), ahead=4):
            got.append(item)
    assert caught.value is error and got == [0, 1]


def test_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    for item in prefetched(itertools.count()):
        if item == 5:
            break
    assert threading.active_count() == before
