"""The pool of threads that read images."""

from __future__ import annotations

import os
import threading

import pytest

from tta_apm.data import workers


@pytest.fixture(autouse=True)
def two_workers():
    workers.set_num_workers(2)
    yield
    workers.set_num_workers(0)


def test_results_come_in_order_from_the_same_threads_each_time():
    first = {workers.in_threads(lambda item: threading.get_ident(), range(20))[index]
             for index in range(20)}
    assert workers.in_threads(lambda item: 2 * item, range(20)) == [2 * item for item in range(20)]
    again = set(workers.in_threads(lambda item: threading.get_ident(), range(20)))
    assert len(first | again) <= 2 and threading.get_ident() not in first


def test_the_number_is_that_of_the_free_cores_unless_one_is_set():
    assert workers.num_workers() == 2
    workers.set_num_workers(0)
    assert 1 <= workers.num_workers() == workers.free_cores() <= (os.cpu_count() or 1)


def test_what_a_call_raises_comes_through():
    with pytest.raises(ZeroDivisionError):
        workers.in_threads(lambda item: 1 / item, [1, 0])
    assert workers.in_threads(int, ["3"]) == [3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_pool_of_its_own():
    """A child process does not have its parent's threads and would wait for them forever."""
    workers.in_threads(int, ["1", "2"])
    child = os.fork()
    if not child:
        os._exit(workers.in_threads(int, ["3", "4"])[1])
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 4
