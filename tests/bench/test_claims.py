"""Claims: several processes on one folder, what each takes, and what becomes of the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest

from places import ROOT
from tta_apm.bench import claims
from tta_apm.bench.claim_state import State, Worker, find_workers, read_state
from tta_apm.bench.claims import MAX_DEATHS, Claims
from tta_apm.bench.failures import read_failures
from tta_apm.errors import UserError

UNITS = [("a",), ("b",), ("c", "d"), ("e",)]

# Claims what its arguments say, and holds it until it is killed.
HOLDER = """
import sys
from pathlib import Path
from tta_apm.bench.claims import Claims
with Claims(Path(sys.argv[1]), sys.argv[2]) as claims:
    unit = tuple(sys.argv[3:])
    taken = claims.take([unit], [unit])
    print("taken" if taken.units else "nothing", flush=True)
    sys.stdin.read(1)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that claims cells in tmp_path."""
    started = []

    def start(work: str, *cells: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), work, *cells],
                                   cwd=ROOT, text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == "taken\n"
        return process
    yield start
    for process in started:
        process.kill()
        process.wait()


def test_alone_all_is_given_and_nothing_is_left_behind(tmp_path):
    with Claims(tmp_path / "new", "work") as mine:
        assert mine.is_first and not mine.is_crowded
        assert mine.take(UNITS, UNITS).units == [0, 1, 2, 3]
        assert find_workers(tmp_path / "new")[0].cells == ["a", "b", "c", "d", "e"]
        mine.finish("a")
        assert mine.take(UNITS, UNITS[1:]).done == ["a"]
    assert not (tmp_path / "new").exists()


def test_what_one_has_another_is_not_given(tmp_path, hold):
    other = hold("work", "c", "d")
    with Claims(tmp_path, "work", num_workers=1) as mine:
        assert not mine.is_first
        assert 2 not in mine.take(UNITS, UNITS).units
        theirs = [worker.cells for worker in find_workers(tmp_path) if worker.pid == other.pid]
        assert theirs == [["c", "d"]]  # "d" is another's, "a" is not
        assert mine.is_crowded  # on the same machine; which device, nobody has said
        other.kill()
        other.wait()
        assert mine.take([("c", "d")], [("c", "d")]).units == [0]


def test_nobody_takes_more_than_its_part(tmp_path):
    with Claims(tmp_path, "work", num_workers=2) as mine:
        assert mine.take(UNITS, UNITS).units == [0, 1]
        assert mine.take(UNITS[2:], UNITS[2:]).units == [0]


def test_every_unit_is_given_once_to_threads_that_all_want_all(tmp_path):
    """Each claims as a process would; the lock keeps them apart."""
    units = [(str(number),) for number in range(24)]
    taken: list[tuple[str, ...]] = []

    def work() -> None:
        with Claims(tmp_path, "work") as mine:
            for _ in units:
                found = mine.take(units, [unit for unit in units if unit not in taken])
                taken.extend(units[index] for index in found.units)
                for index in found.units:
                    mine.finish(units[index][0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(units)


@pytest.mark.slow
def test_other_work_is_refused_in_a_sentence(tmp_path, hold):
    process = hold("one config", "a")
    with pytest.raises(UserError, match="is being written to by another command or config "
                                        rf"\(process {process.pid} on"):
        with Claims(tmp_path, "another config"):
            pass
    process.kill()
    process.wait()
    with Claims(tmp_path, "another config") as mine:
        assert mine.is_first


def test_what_is_given_back_or_failed_is_known_to_others(tmp_path):
    with Claims(tmp_path, "work") as mine, Claims(tmp_path, "work") as other:
        mine.take(UNITS[:2], UNITS)
        assert other.take(UNITS[:2], UNITS).units == []
        mine.release(["b"])
        mine.fail("a", "no luck")
        taken = other.take(UNITS[:2], UNITS)
        assert taken.units == [1] and taken.failed == {"a": "no luck"}
    assert read_failures(tmp_path) == {"a": "no luck"}
    with Claims(tmp_path, "work"):  # a new run
        assert read_failures(tmp_path) == {}


def test_a_cell_that_a_dead_process_recorded_is_not_given_again(tmp_path, hold):
    record = tmp_path / "cell.json"
    process = hold("work", "a")
    with Claims(tmp_path, "work") as mine:
        mine.watch({"a": record})
        record.write_text("{}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        taken = mine.take([("a",), ("b",)], [("a",), ("b",)])
        assert taken.units == [1] and taken.done == ["a"]


def test_a_cell_that_processes_die_of_runs_alone_and_then_fails(tmp_path, hold):
    units = [("deadly",), ("other",)]
    with Claims(tmp_path, "work") as mine:
        for deaths in range(MAX_DEATHS):
            assert mine.take(units, units).units == ([0, 1] if not deaths else [0])
            mine.release(["deadly", "other"])
            process = hold("work", "deadly")
            process.kill()
            process.wait()
        taken = mine.take(units, units)
        assert taken.units == [1]
        assert "were killed, e.g. for lack of memory" in taken.failed["deadly"]


def elsewhere(work: str = "work", order: str = "") -> bytes:
    """The state of a folder where a process of another machine is at work."""
    worker = Worker("there", "another", 1, "", "2026-01-01 00:00:00", cells=["a"], order=order)
    return State(claims.hashlib.sha256(work.encode()).hexdigest()[:16], {"id": worker}).text()


def test_a_silent_process_of_another_machine_loses_its_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SILENT_SECONDS", 0.3)
    (tmp_path / claims.FILE).write_bytes(elsewhere())
    with Claims(tmp_path, "work") as mine:
        assert mine.take([("a",)], [("a",)]).units == []
        time.sleep(0.4)
        assert mine.take([("a",)], [("a",)]).units == [0]


@pytest.mark.slow
def test_one_that_beats_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SILENT_SECONDS", 0.3)
    (tmp_path / claims.FILE).write_bytes(elsewhere())
    with Claims(tmp_path, "work") as mine:
        for beat in range(1, 5):
            state = json.loads((tmp_path / claims.FILE).read_text())
            state["workers"]["id"]["beat"] = beat
            (tmp_path / claims.FILE).write_text(json.dumps(state))
            time.sleep(0.15)
            assert mine.take([("a",)], [("a",)]).units == []


def test_what_a_launcher_has_ended_elsewhere_is_given_back_at_once(tmp_path):
    (tmp_path / claims.FILE).write_bytes(elsewhere(order="launch/1"))
    with Claims(tmp_path, "work", runs=False) as driver, Claims(tmp_path, "work") as mine:
        driver.release_launch("another")
        driver.release_launch("lau")
        assert mine.take([("a",)], [("a",)]).units == []
        driver.release_launch("launch")
        assert mine.take([("a",)], [("a",)]).units == [0]


def test_a_worker_that_is_started_again_takes_over_at_once_what_it_had(tmp_path):
    (tmp_path / claims.FILE).write_bytes(elsewhere(order="launch/1"))
    with Claims(tmp_path, "work", order="launch/2") as other:
        assert other.take([("a",)], [("a",)]).units == []
        with Claims(tmp_path, "work", order="launch/1") as mine:
            assert mine.take([("a",)], [("a",)]).units == [0]


def test_other_work_elsewhere_is_waited_for_only_if_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.1)
    (tmp_path / claims.FILE).write_bytes(elsewhere(work="other"))
    with Claims(tmp_path, "work") as mine:  # it does not beat: it is no more
        assert mine.is_first


@pytest.mark.slow
def test_beats_are_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    with Claims(tmp_path, "work"):
        time.sleep(0.5)
        assert next(iter(read_state(tmp_path).workers.values())).beat > 2


def test_a_number_that_another_process_has_now_is_no_sign_of_life():
    worker = Worker("here", claims.machine(), os.getpid(), claims.started(os.getpid()), "")
    assert not worker.is_dead()
    worker.born = "1"
    assert not claims.started(os.getpid()) or worker.is_dead()


def test_one_that_only_follows_takes_no_part(tmp_path):
    with Claims(tmp_path, "work", runs=False), Claims(tmp_path, "work") as mine:
        assert mine.is_first and not mine.is_crowded
        assert mine.take(UNITS, UNITS).units == [0, 1, 2, 3]


def test_a_state_that_is_none_is_nobody_at_work(tmp_path):
    for content in ("", "[]", "{", json.dumps({"workers": {"id": {"host": 1}}}),
                    json.dumps({**asdict(State()), "surplus": 1})):
        (tmp_path / claims.FILE).write_text(content)
        assert find_workers(tmp_path) == []


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    with Claims(tmp_path, "work") as mine:
        def refuse(*args, **keywords):
            raise OSError(28, os.strerror(28))
        monkeypatch.setattr(claims, "atomic_path", refuse)
        with pytest.raises(UserError, match="cannot write .*No space left on device"):
            mine.take(UNITS, UNITS)
        monkeypatch.undo()
