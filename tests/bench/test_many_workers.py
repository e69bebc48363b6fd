"""Workers: several processes share a sweep and give what one gives, however they are started."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from places import ROOT
from small_methods import NAMES, SMALL
from tta_apm import cli
from tta_apm.atomic import is_alive
from tta_apm.bench.claim_state import FILE, find_workers
from tta_apm.bench.launch import local, slurm
from tta_apm.bench.launch.launcher import LAUNCHERS
from tta_apm.bench.launch.local import Local
from tta_apm.bench.launch.worker import Order
from tta_apm.bench.records import load_record
from tta_apm.config import load
from tta_apm.config.launch import minutes
from tta_apm.errors import UserError

pytestmark = pytest.mark.slow  # sweeps, processes or training

RAY = ("--launcher", "ray")
SLURM = ("--launcher", "slurm")
# Every method, in a size for tests; those that carry state over take their domains in a row.
EVERY = {"METHODS": NAMES, "CORRUPTIONS": ["fog", "contrast"], "NUM_IMAGES": 8,
         "BATCH_SIZE": 4, "SEEDS": [1], "SETTING": "continual",
         **{name.upper(): {key.upper(): list(value) if isinstance(value, tuple) else value
                           for key, value in keywords.items()}
            for name, keywords in SMALL.items()}}
FEW = {"METHODS": ["source", "norm", "tent", "clip_zero_shot"],
       "CORRUPTIONS": ["fog", "contrast", "snow"], "NUM_IMAGES": 8, "BATCH_SIZE": 4, "SEEDS": [1]}


def cells(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.npz")}


@pytest.fixture
def command(tmp_path):
    """The words of a command line that runs a config into a folder of tmp_path."""
    def command(config: dict, folder: str, *words: str) -> list[str]:
        file = tmp_path / f"{folder}.yaml"
        file.write_text(yaml.safe_dump(config))
        return ["--cfg", str(file), *words, "OUTPUT_DIR", str(tmp_path / folder)]
    return command


@pytest.fixture
def start(command):
    """Start it as a process of its own."""
    started = []

    def start(*words, **keywords) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "run.py", *command(*words)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, **keywords)
        started.append(process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def submitit_here(monkeypatch):
    """submitit's executor of this machine in place of a Slurm cluster's."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setattr(slurm, "queue_states", lambda job_ids: {  # the ids are those of processes
        job_id: "RUNNING" for job_id in job_ids
        if is_alive(int(job_id)) and not is_zombie(int(job_id))})


def test_every_method_gives_the_same_bytes_alone_and_shared_by_two(command, tmp_path, capsys):
    assert cli.main(command(EVERY, "alone", "TOGETHER", "1")) == cli.OK
    alone = cells(tmp_path / "alone")
    assert len(alone) == 2 * len(NAMES)
    assert cli.main(command(EVERY, "two", "--workers", "2")) == cli.OK
    assert cells(tmp_path / "two") == alone
    printed = capsys.readouterr()
    assert "2 workers on this machine (processes " in printed.out
    logs = [(tmp_path / f"two/logs/worker-{number}.log").read_text() for number in (1, 2)]
    assert all(log.count("  error ") >= 4 for log in logs)
    assert not (tmp_path / "two" / FILE).exists()
    told = (tmp_path / "two/table.md").read_text()
    assert "~ before a time: measured while other processes used the same device" in told


@pytest.mark.parametrize("setting", ["reset_each_domain", "gradual", "mixed_domains"])
def test_every_setting_gives_the_same_bytes_alone_together_and_shared(command, tmp_path, setting):
    """Continual, the fourth, is that of every method above."""
    config = {**FEW, "METHODS": ["source", "norm", "tent", "eata FISHER_ALPHA 0"],
              "CORRUPTIONS": ["fog", "contrast"], "SEVERITY": [1, 3, 5], "SEEDS": [1, 2],
              "SETTING": setting}
    assert cli.main(command(config, "alone", "TOGETHER", "1")) == cli.OK
    alone = cells(tmp_path / "alone")
    assert len(alone) == 4 * 2 * 6
    assert cli.main(command(config, "together")) == cli.OK
    assert cells(tmp_path / "together") == alone
    assert cli.main(command(config, "two", "--workers", "2")) == cli.OK
    assert cells(tmp_path / "two") == alone


# Its constructor notes each time that the work before all images is done.
PRECOMPUTED = """
import os
from pathlib import Path
import torch
from tta_apm.backbones.tensor_cache import precomputed
from tta_apm.method import Method, register

@register("set_up_once")
class SetUpOnce(Method):
    needs, scope = "classifier", "image"

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.scale = precomputed("scale", self.work)["scale"]

    def work(self):
        with open(Path(__file__).with_suffix(".txt"), "a") as file:
            file.write(f"{os.getpid()}\\n")
        return {"scale": torch.tensor(2.0)}

    def forward(self, images):
        return self.scale * self.backbone(images)

    def reset(self):
        pass
"""


def test_what_comes_before_all_images_is_worked_out_by_one_of_them(command, tmp_path):
    (tmp_path / "plugin.py").write_text(PRECOMPUTED)
    config = {**FEW, "METHODS": ["set_up_once", "source"], "PLUGINS": [str(tmp_path / "plugin.py")]}
    assert cli.main(command(config, "two", "--workers", "2")) == cli.OK
    assert len((tmp_path / "plugin.txt").read_text().split()) == 1
    logs = [(tmp_path / f"two/logs/worker-{number}.log").read_text() for number in (1, 2)]
    assert all("set_up_once" in log for log in logs)
    assert not (tmp_path / "two/.precomputed").exists()


def test_ray_gives_the_same_bytes(command, tmp_path, capsys):
    pytest.importorskip("ray")
    assert cli.main(command(EVERY, "alone")) == cli.OK
    assert cli.main(command(EVERY, "ray", "--workers", "2", *RAY)) == cli.OK
    assert cells(tmp_path / "ray") == cells(tmp_path / "alone")
    assert "2 Ray actors with 1 cores and 0 GPUs each, on 1 node\n" in capsys.readouterr().out


def test_submitit_gives_the_same_bytes(command, tmp_path, capsys, submitit_here):
    assert cli.main(command(EVERY, "alone")) == cli.OK
    assert cli.main(command(EVERY, "jobs", "--workers", "2", *SLURM, "LAUNCH.TIME", "30",
                            "LAUNCH.PARTITION", "gpu")) == cli.OK
    assert cells(tmp_path / "jobs") == cells(tmp_path / "alone")
    assert "Ctrl-C ends only this display" in capsys.readouterr().out


@pytest.mark.parametrize("signals", [
    (signal.SIGUSR2,), (signal.SIGUSR1,), (signal.SIGTERM, signal.SIGUSR2)])
def test_a_job_that_is_preempted_is_requeued(command, tmp_path, submitit_here, signals):
    """One job, which only submitit starts again."""
    folder = tmp_path / "jobs"

    def preempt() -> None:
        wait_for(lambda: any(worker.cells for worker in find_workers(folder)), Alive())
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


def test_a_job_without_a_time_is_one_sentence(command, capsys, submitit_here):
    test_bad_input_is_one_sentence(command, capsys, (*SLURM, "--workers", "2"),
                                   "--launcher slurm: say how long a job may run, e.g. LAUNCH.TIME")


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
        wait_for(lambda: sum(bool(worker.cells) for worker in find_workers(folder)) == 2, process)
        cluster.remove_node(second, allow_graceful=False)
        said = process.communicate(timeout=240)
        assert process.returncode == cli.OK, said
        assert cli.main(command(config, "alone")) == cli.OK
        assert cells(folder) == cells(tmp_path / "alone")
    finally:
        cluster.shutdown()
        ray.shutdown()


def test_four_identical_commands_share_the_work(start, tmp_path, command):
    processes = [start(FEW, "shared") for _ in range(4)]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [cli.OK] * 4, said
    lines = [line for out, _ in said for line in out.splitlines() if "  error " in line]
    assert len(lines) == 12 == len({tuple(line.split()[:4]) for line in lines})
    assert cli.main(command(FEW, "alone")) == cli.OK
    assert cells(tmp_path / "shared") == cells(tmp_path / "alone")


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


LONG = {**FEW, "NUM_IMAGES": 150, "METHODS": ["tent", "memo NUM_VIEWS 4"]}


def test_local_workers_get_a_gpu_each_and_a_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "free_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    for name in local.THREADS:
        monkeypatch.delenv(name, raising=False)

    def orders(*words: str) -> list[Order]:
        return Local(load(str(ROOT / "cfgs/digits_c/base.yaml"),
                          ["OUTPUT_DIR", str(tmp_path), *words]), 3).orders(redo=False)

    devices = [order.environment["CUDA_VISIBLE_DEVICES"] for order in orders()]
    assert sorted(devices[:2]) == ["4", "7"] and devices[2] == devices[0]
    assert not any("CUDA_VISIBLE_DEVICES" in order.environment
                   for order in orders("DEVICE", "cpu"))
    for order in orders():
        assert order.num_threads == 2
        assert {order.environment[name] for name in local.THREADS} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's own choice
    assert all(order.environment["OMP_NUM_THREADS"] == "1" for order in orders())


def test_ctrl_c_stops_all_and_says_how_to_go_on(start, tmp_path, command):
    process = start(LONG, "stopped", "--workers", "2", start_new_session=True)
    folder = tmp_path / "stopped"
    wait_for(lambda: sum(bool(worker.cells) for worker in find_workers(folder)) == 2, process)
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
        wait_for(lambda: sum(bool(worker.cells) for worker in find_workers(folder)) == 2
                 or process.poll() is not None, process if not written else Alive())
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


class Alive:
    """In place of a process that may have ended."""

    def poll(self) -> None:
        return None


def test_a_worker_that_dies_is_told_and_its_work_taken_over(start, tmp_path):
    process = start(LONG, "died", "--workers", "2")
    folder = tmp_path / "died"
    wait_for(lambda: sum(bool(worker.cells) for worker in find_workers(folder)) == 2, process)
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
    wait_for(lambda: not is_alive(pid) or is_zombie(pid), Alive())


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked for its exit code."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_row_that_fails_and_a_setting_that_is_bad(command, tmp_path, capsys):
    config = {**FEW, "METHODS": ["source", "tent"]}
    code = cli.main(command({**config, "BATCH_SIZE": 1}, "failed", "--workers", "2"))
    assert code == cli.FAILED_CELLS
    printed = capsys.readouterr()
    assert printed.out.count("FAILED: ") == 3 and "3 of 6 cells FAILED" in printed.err
    assert cli.main(command({**config, "METHODS": ["tent"], "TENT": {"LR": -1}}, "bad",
                            "--workers", "2")) == cli.BAD_INPUT
    assert "worker " in (said := capsys.readouterr().err) and "lr -1" in said


def test_what_is_launched_with_enters_no_identity_and_no_saved_config(command, tmp_path, capsys):
    assert cli.main(command(FEW, "one", "LAUNCH.GPUS", "4", "LAUNCH.SETUP", "[module load]")) \
        == cli.OK
    assert "cells to run" in capsys.readouterr().out
    assert cli.main(command(FEW, "one", "--workers", "2", "TOGETHER", "1", "NUM_WORKERS", "1")) \
        == cli.OK
    assert "cells to run" not in capsys.readouterr().out
    assert "LAUNCH" not in (tmp_path / "one/config.yaml").read_text()


def test_seconds_are_marked_only_where_others_were_at_work(command, tmp_path):
    assert cli.main(command(FEW, "alone")) == cli.OK
    assert not any(load_record(file).crowded for file in (tmp_path / "alone").rglob("*42.json"))
    old = next((tmp_path / "alone").rglob("source/*.json"))
    content = json.loads(old.read_text())
    del content["crowded"]  # a record of an earlier version
    old.write_text(json.dumps(content))
    assert load_record(old).crowded is False


def test_a_dry_run_shows_units_and_the_batch_script(command, capsys):
    config = {**FEW, "SETTING": "continual"}
    words = command(config, "dry", "--workers", "3", *SLURM, "--dry-run", "LAUNCH.PARTITION", "gpu",
                    "LAUNCH.TIME", "4:00:00", "LAUNCH.MEMORY", "32G", "LAUNCH.ARRAY_LIMIT", "2",
                    "LAUNCH.SETUP", "[module load cuda]", "LAUNCH.CPUS", "6")
    assert cli.main(words) == cli.OK
    out = capsys.readouterr().out
    assert "10 units for 3 workers (one worker runs all of a unit): 9 of one cell each" in out
    assert "  tent, seed 1: 3 cells, continual-shuffled/tent/fog-5-seed1 ..." in out
    script = out[out.index("#!/bin/bash"):].splitlines()
    assert {"#SBATCH --array=1-3%2", "#SBATCH --partition=gpu", "#SBATCH --time=4:00:00",
            "#SBATCH --mem=32G", "#SBATCH --gpus-per-node=1", "module load cuda"} <= {*script}
    assert not any(line.startswith(("#SBATCH --account", "#SBATCH --qos")) for line in script)
    [run] = [line for line in script if line.startswith("srun ")]
    assert run.startswith("srun --cpus-per-task=6 tta-apm --cfg ") and "--workers" not in run
    assert script[-1] == "exit $code"


@pytest.mark.parametrize("words, sentence", [
    (("--workers", "0"), "--workers 0 must be at least 1"),
    (("--launcher", "rya", "--workers", "2"), "unknown launcher 'rya': did you mean 'ray'?"),
    (SLURM, "--launcher slurm: say how many workers"),
    ((*SLURM, "--workers", "2", "--address", "here"), "--address is for --launcher ray"),
    (("--address", "here"), "--address is for --launcher ray"),
    ((*SLURM, "--workers", "2", "LAUNCH.CPUS", "-1"), "LAUNCH: CPUS -1 must be at least 0"),
    ((*SLURM, "--workers", "2", "--dry-run", "LAUNCH.TIME", "soon"), "LAUNCH.TIME 'soon': give "),
    (("LAUNCH.TIME", "1:2:3:4"), "LAUNCH.TIME '1:2:3:4': give minutes"),
    (("LAUNCH.MEMORY", "much"), "LAUNCH.MEMORY 'much': give a number and K, M, G or T"),
    (("LAUNCH.PARTITION", "a b"), "LAUNCH.PARTITION 'a b': give a name without blanks"),
    (("LAUNCH.SETUP", '["a\nb"]'), "LAUNCH.SETUP: give a text of one line")])
def test_bad_input_is_one_sentence(command, capsys, words, sentence):
    assert cli.main(command(FEW, "bad", *words)) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_folder_that_the_workers_do_not_see_is_one_sentence(command, capsys, monkeypatch):
    class Elsewhere(Local):
        """Its workers look on another disk."""

        def orders(self, *, redo):
            return [replace(order, folder=f"{order.folder}-of-another-disk")
                    for order in super().orders(redo=redo)]

    monkeypatch.setitem(LAUNCHERS._registered, "elsewhere", Elsewhere)
    test_bad_input_is_one_sentence(
        command, capsys, ("--workers", "2", "--launcher", "elsewhere"),
        "OUTPUT_DIR must be on a disk that all machines share")


@pytest.mark.parametrize("package, words, sentence", [
    ("ray", (*RAY, "--address", "127.0.0.1:1"), "nobody answers there"),
    ("ray", (*RAY, "LAUNCH.CPUS", "4000"), "the Ray cluster has "),
    ("submitit", SLURM, "--dry-run prints the script")])
def test_a_cluster_that_is_not_there_is_one_sentence(command, capsys, package, words, sentence):
    pytest.importorskip(package)
    test_bad_input_is_one_sentence(command, capsys, ("--workers", "2", *words), sentence)


@pytest.mark.parametrize("name, extra", [("ray", "tta-apm[ray]"), ("submitit", "tta-apm[slurm]")])
def test_an_extra_that_is_not_installed_is_named(command, capsys, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    launcher = "ray" if name == "ray" else "slurm"
    assert cli.main(command(FEW, "bad", "--workers", "2", "--launcher", launcher)) == cli.BAD_INPUT
    assert extra in capsys.readouterr().err


def test_a_launcher_of_yours_as_the_guide_has_it(command, tmp_path, capsys, monkeypatch):
    """Word for word; the entry point is stood in for, since nothing is installed for a test."""
    guide = (ROOT / "docs/guides/launcher.md").read_text(encoding="utf-8")
    found: dict = {}
    exec(guide.split("```python\n")[1].split("```")[0], found)  # text of ours
    monkeypatch.setitem(LAUNCHERS._registered, "mine", found["Mine"])
    assert cli.main(command(FEW, "mine", "--workers", "2", "--launcher", "mine")) == cli.OK
    assert "2 processes\n" in capsys.readouterr().out
    assert len(cells(tmp_path / "mine")) == 12


def test_slurm_s_times_are_read_as_slurm_reads_them():
    for text, count in (("90", 90), ("90:30", 91), ("2:00:00", 120), ("1-12", 36 * 60),
                        ("1-0:30", 24 * 60 + 30), ("1-0:30:01", 24 * 60 + 31)):
        assert minutes(text) == count
    for text in ("", "an hour", "1:2:3:4", "-5", "1-"):
        with pytest.raises(UserError, match="LAUNCH.TIME"):
            minutes(text)
