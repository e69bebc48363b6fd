"""Workers that are interrupted, preempted, killed or lost: no cell is lost or run twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from places import ROOT
from sweeps import FEW, RAY, SLURM, cells, has_ended, two_at_work, wait_for
from tta_apm import cli
from tta_apm.bench.claim_state import FILE, find_workers

pytestmark = pytest.mark.slow  # sweeps, processes or training

LONG = {**FEW, "NUM_IMAGES": 150, "METHODS": ["tent", "memo NUM_VIEWS 4"]}


def test_ctrl_c_stops_all_and_says_how_to_go_on(start, tmp_path, command):
    process = start(LONG, "stopped", "--workers", "2", start_new_session=True)
    folder = tmp_path / "stopped"
    wait_for(lambda: two_at_work(folder), process)
    pids = [worker.pid for worker in find_workers(folder)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, error = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED and "Traceback" not in error
    assert "cells are done and kept in" in error and "the same command goes on" in error
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not (folder / FILE).exists() and not list(folder.rglob("*.tmp"))
    assert cli.main(command(LONG, "stopped", "--workers", "2")) == cli.OK
    assert len(cells(folder)) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_scheduler_s_signal_drops_the_unit_and_gives_it_back(start, tmp_path, command, number):
    process = start(LONG, "stopped")
    folder = tmp_path / "stopped"
    wait_for(lambda: any(worker.cells for worker in find_workers(folder)), process)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "the same command goes on from there" in error and "Traceback" not in error
    assert not (folder / FILE).exists() and not list(folder.rglob("*.tmp"))
    assert cli.main(command(LONG, "stopped")) == cli.OK  # as a requeued job does
    assert len(cells(folder)) == 6


def test_killed_workers_and_drivers_lose_and_double_nothing(start, tmp_path, command):
    """Each kill ends a random one of three processes; who is left, or the next command, goes on."""
    random.seed(0)
    config = {**FEW, "METHODS": ["source", "tent", "memo NUM_VIEWS 4"], "NUM_IMAGES": 60}
    folder = tmp_path / "killed"
    written: dict[str, int] = {}
    for _ in range(6):
        process = start(config, "killed", "--workers", "2")
        wait_for(lambda: two_at_work(folder) or process.poll() is not None,
                 None if written else process)
        time.sleep(random.uniform(0, 0.5))
        victims = [process.pid, *(worker.pid for worker in find_workers(folder))]
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(random.choice(victims), signal.SIGKILL)
        process.communicate(timeout=120)
        for name in cells(folder):
            time_of = (folder / name).stat().st_mtime_ns
            assert written.setdefault(name, time_of) == time_of, "run again"
    assert cli.main(command(config, "killed", "--workers", "2")) == cli.OK
    assert cli.main(command(config, "alone")) == cli.OK
    assert cells(folder) == cells(tmp_path / "alone")
    assert not (folder / FILE).exists() and not list(folder.rglob("*.tmp"))


def test_a_worker_that_dies_is_told_and_its_work_taken_over(start, tmp_path):
    process = start(LONG, "died", "--workers", "2")
    folder = tmp_path / "died"
    wait_for(lambda: two_at_work(folder), process)
    os.kill([worker.pid for worker in find_workers(folder) if worker.runs][0], signal.SIGKILL)
    out, error = process.communicate(timeout=240)
    assert process.returncode == cli.OK, error
    assert "ended too early: it was killed, e.g. for lack of memory" in error
    assert len(cells(folder)) == 6


# Starts a worker's process, tells its number, and is killed before there is any work for it.
KILLED = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from tta_apm.bench.launch import local
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), local._begin, (os.getpid(),))
print(pool.submit(os.getpid).result(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_does_not_outlive_a_driver_that_is_killed_before_it_has_work():
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pid = int(done.stdout)
    wait_for(lambda: has_ended(pid))


@pytest.mark.parametrize("signals", [
    (signal.SIGUSR2,), (signal.SIGUSR1,), (signal.SIGTERM, signal.SIGUSR2)])
def test_a_job_that_is_preempted_is_requeued(command, tmp_path, submitit_here, signals):
    """One job, which only submitit starts again."""
    folder = tmp_path / "jobs"

    def preempt() -> None:
        wait_for(lambda: any(worker.cells for worker in find_workers(folder)))
        [pid] = [worker.pid for worker in find_workers(folder) if worker.runs]
        for number in signals:
            os.kill(pid, number)
            time.sleep(1)

    scheduler = threading.Thread(target=preempt)
    scheduler.start()
    config = {**LONG, "NUM_IMAGES": 60}
    assert cli.main(command(config, "jobs", "--workers", "1", *SLURM, "LAUNCH.TIME", "30",
                            "LAUNCH.GPUS", "0")) == cli.OK
    scheduler.join()
    assert len(cells(folder)) == 6
    assert (folder / "logs/worker-1.log").read_text().count("--- process ") == 2


def test_a_ray_node_that_is_lost_loses_no_cell(command, tmp_path, start):
    """Two nodes on one machine, one of which goes while both are at work."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    node = dict(num_cpus=1, node_ip_address="127.0.0.1")
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        config = {**FEW, "NUM_IMAGES": 150, "METHODS": ["source", "memo NUM_VIEWS 4"]}
        process = start(config, "ray", "--workers", "2", *RAY, "--address", cluster.address)
        folder = tmp_path / "ray"
        wait_for(lambda: two_at_work(folder), process)
        cluster.remove_node(second, allow_graceful=False)
        said = process.communicate(timeout=240)
        assert process.returncode == cli.OK, said
        assert cli.main(command(config, "alone")) == cli.OK
        assert cells(folder) == cells(tmp_path / "alone")
    finally:
        cluster.shutdown()
        ray.shutdown()


def test_a_ray_worker_that_is_killed_loses_no_cell(command, tmp_path, start):
    pytest.importorskip("ray")
    config = {**FEW, "NUM_IMAGES": 150, "METHODS": ["source", "memo NUM_VIEWS 4"]}
    process, folder = start(config, "ray", "--workers", "2", *RAY), tmp_path / "ray"
    wait_for(lambda: two_at_work(folder), process)
    os.kill(next(worker.pid for worker in find_workers(folder) if worker.runs), signal.SIGKILL)
    said = process.communicate(timeout=240)
    assert process.returncode == cli.OK, said
    assert cli.main(command(config, "alone")) == cli.OK
    assert cells(folder) == cells(tmp_path / "alone")
