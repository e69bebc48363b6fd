"""Output that ends nothing, Ctrl-C, and machines that are set up in other ways."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from places import ROOT
from tta_apm import console, progress
from tta_apm.console import Interrupts, stop_if_asked, uninterrupted

pytestmark = pytest.mark.slow  # sweeps, processes or training

# Four cells of networks as they are, and four that ask for no library beside torch.
SETTINGS = ("--cfg", "cfgs/digits_c/apm.yaml", "METHODS", "[source,apm]", "APM.STEPS", "1",
            "CORRUPTIONS", "[fog,contrast]", "BATCH_SIZE", "2", "NUM_IMAGES")
LIGHT = ROOT / "tests/cli/light.py"
SWEEP = ("--cfg", "cfgs/digits_c/base.yaml", "PLUGINS", LIGHT, "DATASET", "light",
         "CORRUPT", "true", "METHODS", "[scaled,scaled SCALE 2]", "CORRUPTIONS", "[fog,contrast]",
         "BATCH_SIZE", "2", "NUM_IMAGES", "4")


def command(*words: object) -> list[str]:
    return [sys.executable, "run.py", *map(str, words)]


def shell(line: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run `line` with the command as "$@"."""
    return subprocess.run(["bash", "-c", line, "bash", *command(*words)], cwd=ROOT, text=True,
                          encoding="utf-8", errors="replace", capture_output=True, timeout=300,
                          env=os.environ | environment)


def is_whole(results: Path) -> bool:
    """Whether all four cells and the tables are there, and nothing else."""
    names = {path.name for path in results.iterdir()}
    return (len(list(results.rglob("*-seed*.json"))) == 4
            and {"config.yaml", "cells", "table.md", "table.csv", "table.tex"} <= names
            and not list(results.rglob("*.tmp")) and ".lock" not in names)


@pytest.mark.parametrize("line, code", [
    ('"$@" | head -1; exit ${PIPESTATUS[0]}', 0),
    ('"$@" 2>&1 | true; exit ${PIPESTATUS[0]}', 0),
    ('exec "$@" >&-', 0), ('exec "$@" >&- 2>&- <&-', 0),
    ('exec "$@" > /dev/full', 0), ('exec "$@" > /dev/full 2>&1', 0),
    ('TQDM_MININTERVAL=x exec "$@"', 2)])
def test_no_output_ends_a_sweep(line, code, tmp_path):
    done = shell(line, *SWEEP, "OUTPUT_DIR", tmp_path / "results")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == code, done.stderr
    if code == 0:
        assert is_whole(tmp_path / "results")
    else:
        assert "TQDM_MININTERVAL" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "cp932"}, {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["cp1252", "cp932", "ascii", "C"])
def test_any_code_page_will_do(environment, tmp_path):
    results = tmp_path / ("results" if "LC_ALL" in environment else "résultats")
    done = shell('exec "$@"', *SWEEP, "OUTPUT_DIR", results, **environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    made = (results / "table.md").read_text(encoding="utf-8")
    assert is_whole(results) and "Δ" in made
    (results / "table.md").unlink()
    done = shell('exec "$@"', "table", results, **environment)
    assert done.returncode == 0 and "scaled" in done.stdout
    assert (results / "table.md").read_text(encoding="utf-8") == made


# Runs a sweep, so that all is imported, and again as nobody. Folders of this Python may be closed
# to others, as mktemp makes them: of root's rights nobody keeps the one to read (KEEPCAPS, then
# CAP_DAC_READ_SEARCH alone), and none to write.
NOBODY = """
import ctypes, os, sys
from tta_apm import cli
words = ["--cfg", "cfgs/digits_c/apm.yaml", "METHODS", "[clip_zero_shot]", "CORRUPTIONS", "fog",
         "NUM_IMAGES", "2", "OUTPUT_DIR"]
assert cli.main([*words, sys.argv[1] + "/first"]) == 0
for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
    os.environ.pop(name, None)
libc = ctypes.CDLL(None, use_errno=True)
os.setgroups([])
os.setgid(54321)
assert libc.prctl(8, 1, 0, 0, 0) == 0
os.setuid(54321)
read = 1 << 2
header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(read, read)
assert libc.capset(header, rights) == 0, os.strerror(ctypes.get_errno())
try:
    open("/etc/written-by-nobody", "w")
except PermissionError:
    pass
else:
    sys.exit("nobody may write everywhere")
sys.exit(cli.main([*words, sys.argv[1] + "/second"]))
"""


def test_a_user_without_a_home_does_without_a_cache():
    """As in a container: a number without a name, and no HOME."""
    if os.getuid() != 0:
        pytest.skip("only root can become nobody in particular")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in a folder closed to others
        os.chmod(folder, 0o777)
        done = subprocess.run([sys.executable, "-c", NOBODY, folder], cwd=ROOT, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert Path(folder, "second", "table.md").stat().st_uid == 54321


@pytest.mark.parametrize("rank, said", [("0", 1), ("1", 0)])
def test_torchrun_is_told_what_to_do(rank, said, tmp_path):
    done = shell('exec "$@"', *SWEEP, "OUTPUT_DIR", tmp_path / "results", WORLD_SIZE="2", RANK=rank)
    assert done.returncode == 2 and not (tmp_path / "results").exists()
    assert done.stderr.count("start it without torchrun") == done.stderr.count("\n") == said


@pytest.mark.parametrize("words", [
    (*SETTINGS, "400", "OUTPUT_DIR", "{}/results"),
    ("plot", "{}/results"), ("table", "{}/results"),
    ("pretrain", "--cfg", "cfgs/pretrain/quick.yaml", "OUTPUT_DIR", "{}/student")],
    ids=lambda words: words[0])
def test_ctrl_c_is_answered_soon_and_without_a_traceback(words, tmp_path, write_cell):
    """Wherever it comes: during the imports, while networks are built, in the work itself.

    The same command four times side by side, in folders of its own, each stopped at another moment.
    """
    path = write_cell("source", "fog", 5)
    moments = (0.3, 1, 2.5, 5)
    folders = [tmp_path / f"after {seconds}" for seconds in moments]
    for folder in folders:
        shutil.copytree(path.parent, folder / "results/cells")
    began = time.monotonic()
    processes = [subprocess.Popen(command(*(word.format(folder) for word in words)), cwd=ROOT,
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  start_new_session=True) for folder in folders]
    for seconds, process in zip(moments, processes):
        time.sleep(max(0, began + seconds - time.monotonic()))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        stopped = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - stopped < 10
        assert process.returncode in (130, 0, -signal.SIGINT)
        assert "Traceback" not in said and "Exception ignored" not in said, said
        if process.returncode == 130:
            assert "Stopped" in said
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".lock"))


def test_progress_in_a_log_is_lines_some_seconds_apart(monkeypatch, capsys):
    now = 0.0  # in steps of 2**-4, which add up exactly
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.bar(400, "step", "training", start=100) as shown:
        for step in range(300):
            now += 0.0625
            shown.set_postfix_str(f"loss {step}")
            shown.update()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "training: 180 of 400 step, 16 step/s, 00:13 left, loss 79"
    assert len(said) == 3  # in 19 seconds


def test_four_equal_commands_at_once_lose_and_double_nothing(tmp_path):
    """They share the work, wait for one another and show the same table."""
    words = command(*SWEEP, "OUTPUT_DIR", tmp_path / "results")
    processes = [subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    ran = [line.split("  error ")[0] for out, _ in said for line in out.splitlines()
           if "  error " in line]
    assert len(ran) == len(set(ran)) == 4, ran
    assert all("scaled" in out and "Traceback" not in error for out, error in said)
    assert is_whole(tmp_path / "results")


def test_another_config_on_a_folder_at_work_is_refused(tmp_path):
    words = ["OUTPUT_DIR", tmp_path / "results", *SETTINGS]
    first = subprocess.Popen(command(*words, 500), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "results/.workers").exists():
            assert first.poll() is None
            time.sleep(0.05)
        done = shell('exec "$@"', *words, 500, "SEEDS", "[7]")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"by another command or config (process {first.pid} on" in done.stderr
    finally:
        first.kill()
        first.wait()
    assert shell('exec "$@"', *words, 4, "SEEDS", "[7]").returncode == 0


def test_a_signal_that_is_swallowed_is_raised_again(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: dropped.append(told.exc_type))
    with Interrupts() as interrupts:
        class Swallows:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(100):
                    time.sleep(0.001)

        Swallows()
        gc.collect()
        assert dropped == [KeyboardInterrupt]
        assert interrupts.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
    stop_if_asked()


# Sends itself Ctrl-C so many seconds after torch has begun to register its distributed classes.
AIMED = """
import os, signal, sys, time
from tta_apm.console import Interrupts
begun, begins = os.pipe()
if os.fork() == 0:
    os.read(begun, 1)
    time.sleep(float(sys.argv[1]))
    os.kill(os.getppid(), signal.SIGINT)
    os._exit(0)

def watch(frame, event, called):
    if event == "c_call" and called.__name__ == "_c10d_init":
        sys.setprofile(None)
        os.write(begins, b"x")

with Interrupts():
    try:
        sys.setprofile(watch)
        import torch
        sys.exit("imported")
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("seconds", [0, 0.006, 0.012])
def test_ctrl_c_while_torch_registers_classes_does_not_abort(seconds):
    """With an error raised there, more than every second process ended with SIGABRT."""
    if not hasattr(torch._C, "_c10d_init"):
        pytest.skip("this torch has no distributed package")
    done = subprocess.run([sys.executable, "-c", AIMED, str(seconds)], cwd=ROOT, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 130, done.stderr


SETS_UP = """
import signal, time
from importlib.machinery import ExtensionFileLoader
from test_console import LEFT

def set_up():
    # One call of compiled code, without an instruction of Python in it.
    list(map(LEFT.append, map(signal.raise_signal, [signal.SIGINT])))

class Extension(ExtensionFileLoader):
    def exec_module(self, module):
        set_up()
        for _ in range(100):
            time.sleep(0.001)
        LEFT.append("the end")
"""
# What a set-up of the tests has come to.
LEFT: list[object] = []


@pytest.mark.parametrize("of_python, left", [("set_up()", [None]), (
    "Extension('sets_up', '').exec_module(None)", [None, "the end"])], ids=["module", "extension"])
def test_a_signal_during_an_import_is_not_raised_within_compiled_code(of_python, left, tmp_path,
                                                                      monkeypatch):
    """C++ that meets the error may abort, as that of torch.distributed does where it registers
    its classes."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"sets_up_{len(left)}.py").write_text(
        f"{SETS_UP}\n{of_python}\nfor _ in range(10_000):\n    time.sleep(0.001)\n")
    LEFT.clear()
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        importlib.import_module(f"sets_up_{len(left)}")
    assert left == LEFT
    assert interrupts.number == signal.SIGINT


def test_a_worker_notes_a_second_signal_and_goes_on_to_end_cleanly(monkeypatch):
    """A preempted job gets SIGTERM and later SIGUSR2, which asks for its requeueing."""
    monkeypatch.setattr(console, "REPEAT_SECONDS", 0.0)
    with Interrupts(take_over=True) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.01)
    assert (interrupts.number, interrupts.last) == (signal.SIGTERM, signal.SIGUSR2)


def test_a_signal_waits_for_the_end_of_what_must_not_be_half_done():
    reached = []
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        with uninterrupted(), uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):
                time.sleep(0.001)
            reached.append("the end")
        reached.append("nothing beyond")
    assert reached == ["the end"]
    with uninterrupted():
        pass
