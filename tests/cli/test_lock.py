"""Several processes on one folder: the same work is waited for, other work is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from places import ROOT
from tta_apm import lock
from tta_apm.errors import UserError
from tta_apm.lock import locked

# Holds the lock until something is written to its standard input.
HOLDER = """
import sys
from pathlib import Path
from tta_apm.lock import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read(1)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lock of tmp_path with some work."""
    started = []

    def start(work: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), work], cwd=ROOT,
                                   text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process
    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_other_work_is_refused_in_a_sentence(hold, tmp_path):
    process = hold("one config")
    with pytest.raises(UserError, match=f"is being written to by another command or config "
                                        rf"\(process {process.pid} on"):
        with locked(tmp_path, "another config"):
            pass


@pytest.mark.slow
def test_the_same_work_is_waited_for(hold, tmp_path, capsys):
    process = hold("one config")
    process.stdin.write("x")  # it ends, though not at once
    process.stdin.flush()
    with locked(tmp_path, "one config"):
        assert process.wait(10) == 0
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_who_is_waited_for_is_said_once(hold, tmp_path):
    first = hold("one config")
    second = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), "one config"], cwd=ROOT,
                              text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    time.sleep(2)
    first.stdin.write("x")
    first.stdin.flush()
    _, said = second.communicate("x", timeout=20)
    assert second.returncode == 0
    assert said.count("\n") == 1 and f"the same command (process {first.pid} on" in said


def test_the_lock_of_a_killed_process_is_free(hold, tmp_path):
    process = hold("one config")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / lock.NAME).is_file()
    with locked(tmp_path, "another config"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_system_without_locks_has_the_same(tmp_path, monkeypatch):
    """The only part that is stood in for: the system call, as such a file system answers it."""
    def refuse(descriptor):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_lock", refuse)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)
    held = tmp_path / f"{lock.NAME}-held"
    with locked(tmp_path, "one config"):
        with pytest.raises(UserError, match="another command or config"), locked(tmp_path, "other"):
            pass
        before = held.stat().st_mtime_ns
        time.sleep(0.3)
        assert held.stat().st_mtime_ns > before
    assert not held.exists()
    about = {"machine": "another", "host": "there", "pid": 1, "since": "yesterday"}
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for holder in (about, {**about, "machine": lock.machine(), "pid": dead.pid}):
        monkeypatch.setattr(lock, "STALE_SECONDS", 0.2)
        work = lock.hashlib.sha256(b"one config").hexdigest()[:16]
        held.write_text(json.dumps({**holder, "work": work}))  # and nobody touches it
        with locked(tmp_path, "one config"):
            assert json.loads(held.read_text())["pid"] == os.getpid()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("somebody else's")
    (tmp_path / lock.NAME).symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="cannot write to"), locked(tmp_path, "one config"):
        pass
    assert (tmp_path / "other").read_text() == "somebody else's"
